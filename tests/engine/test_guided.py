"""Answers that follow a guide, whatever the model would rather say."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from infra.errors import Invalid
from tests.engine.tiny import (
    Collected,
    LetterTokenizer,
    load_model,
    make_engine,
    request,
    run,
    write_model,
)
from worker.engine.completion import Tokenizer as TextTokenizer
from worker.engine.engine import Engine
from worker.engine.guided import Guides
from worker.engine.request import GenerationRequest, Guide
from worker.models.causal_model import CausalModel
from worker.tokenizer.tokenizer import Tokenizer

END = 0
LETTERS = LetterTokenizer(frozenset([END]))
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["calm", "cross"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


def guide(kind: Any, content: Any = "") -> Guide:
    return Guide(kind, content if isinstance(content, str) else json.dumps(content))


def run_guided(
    engine: Engine, requests: Sequence[GenerationRequest], tokenizer: TextTokenizer | None = None
) -> Mapping[str, Collected]:
    """Raises what ended one of them."""
    got = run(engine, requests, tokenizer=tokenizer)
    for each in got.values():
        if each.error is not None:
            raise each.error
    return got


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        (guide("regex", "[a-c]{3}-[0-9]{2}"), r"[a-c]{3}-[0-9]{2}"),
        (guide("choice", ["yes", "no", 'may"be']), r"yes|no|may\"be"),
        (guide("grammar", 'start: pair+\npair: "<" /[xy]/ ">"\n'), r"(<[xy]>)+"),
        (guide("json_schema", {"enum": [1, "two", None]}), r'1|"two"|null'),
        (guide("json_schema", {"type": "integer", "minimum": 7, "maximum": 19}), r"[7-9]|1[0-9]"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_is_what_its_guide_allows(
    tiny: CausalModel, asked: Guide, pattern: str, temperature: float
) -> None:
    requests = [
        request(f"r{seed}", [97, 98], 60, temperature=temperature, seed=seed, guide=asked)
        for seed in range(4)
    ]
    for collected in run_guided(make_engine(tiny, LETTERS), requests).values():
        if collected.outputs[-1].finish_reason == "stop":
            assert re.fullmatch(pattern, collected.text), collected.text
        else:
            assert asked.kind == "grammar"  # which has no end of its own


def test_an_answer_ends_where_nothing_may_follow(tiny: CausalModel) -> None:
    """Without a step for the end token."""
    asked = request("r", [97], 10, guide=guide("choice", ["aaa"]))
    got = run_guided(make_engine(tiny, LETTERS), [asked])["r"]
    assert (got.text, len(got.token_ids), got.outputs[-1].finish_reason) == ("aaa", 3, "stop")


def test_guides_do_not_touch_their_company_nor_it_them(tiny: CausalModel) -> None:
    free = [request(f"free{index}", [99, index + 97], 20) for index in range(3)]
    asked = guide("regex", "[abc]{20}")
    guided = [
        request(f"guided{seed}", [97], 30, temperature=1.0, seed=seed, guide=asked)
        for seed in range(3)
    ]
    alone = run(make_engine(tiny, LETTERS), free)
    together = run_guided(make_engine(tiny, LETTERS), [*free, *guided])
    for each in free:
        assert together[each.request_id].token_ids == alone[each.request_id].token_ids
    small = make_engine(tiny, LETTERS, kv_cache_tokens=80, speculation="none")
    crowded = run_guided(small, guided)
    assert small.stats().preemptions > 0
    for each in guided:
        assert crowded[each.request_id].text == together[each.request_id].text


def test_what_forbids_every_token_ends_in_an_error(tiny: CausalModel) -> None:
    asked = request("r", [97], 10, guide=guide("choice", ["b"]), logit_bias=((98, -100.0),))
    assert run_guided(make_engine(tiny, LETTERS), [asked])["r"].text == "b"  # a bias is no ban
    impossible = request("r", [97], 10, min_tokens=5, guide=guide("regex", "b|()"))
    with pytest.raises(Invalid, match="no token may come next"):
        run_guided(make_engine(tiny, LetterTokenizer(frozenset([END, 98]))), [impossible])


@pytest.mark.parametrize(
    "asked",
    [
        guide("regex", "[a-"),
        guide("grammar", "start: nowhere"),
        guide("grammar", "not a grammar at all"),
        guide("json_schema", '{"type": "nonsense"}'),
        guide("json_schema", "[1, 2"),
        guide("json_schema", '{"$ref": "#/$defs/missing"}'),
        guide("json_schema", '{"$ref": "https://example.com/schema.json"}'),
    ],
)
def test_a_guide_that_makes_no_sense_is_refused(asked: Guide) -> None:
    with pytest.raises(Invalid) as caught:
        Guides(LETTERS, vocabulary=160).compile(asked)
    assert caught.value.param in {"response_format", "structured_outputs"}


@pytest.mark.timeout(60)
def test_hostile_guides_are_compiled_or_refused() -> None:
    guides = Guides(LETTERS, vocabulary=160)
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(60):
        deep = {"type": "array", "items": deep}
    endless = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}
    for asked in (
        guide("regex", "((((a{1,99}){1,99}){1,99}){1,99})"),
        guide("regex", "(a|b|ab)*c" * 500),
        guide("json_schema", deep),
        guide("json_schema", endless | {"$ref": "#/$defs/a"}),
        guide("json_schema", {"enum": [f"value {index}" for index in range(3000)]}),
        guide("choice", ["x" * 4000] * 10),
    ):
        try:
            matcher = guides.compile(asked)
        except Invalid:
            continue
        mask = bytearray(4 * 5)
        matcher.fill(_address(mask), len(mask))


def _address(buffer: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def test_a_model_without_an_end_token_takes_no_guides() -> None:
    with pytest.raises(Invalid, match="no end token"):
        Guides(LetterTokenizer(), vocabulary=160).compile(guide("regex", "a"))


@pytest.mark.real
def test_the_real_model_writes_what_a_schema_says(smollm2_dir: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_dir)
    engine = make_engine(load_model(smollm2_dir), tokenizer, kv_cache_tokens=8192)  # type: ignore[arg-type]
    prompt = tokenizer.encode_chat(
        [{"role": "user", "content": "Describe Ann, who is 31, as JSON."}], now=0
    )
    requests = [
        request(
            f"r{seed}",
            prompt,
            120,
            temperature=0.0 if seed == 0 else 1.0,
            seed=seed,
            guide=guide("json_schema", PERSON),
        )
        for seed in range(6)
    ]
    for collected in run_guided(engine, requests, tokenizer).values():
        assert collected.outputs[-1].finish_reason == "stop"
        jsonschema.validate(json.loads(collected.text), PERSON)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    return load_model(write_model(tmp_path_factory.mktemp("models") / "tiny"))
