from typing import Any

import pytest

from infra.errors import SourceInvalid
from infra.sources.model_files import (
    UNBOUNDED_TOKEN_BYTES,
    checked_name,
    describe_model,
    longest_token_bytes,
    splits_words,
)
from tests.sources.models import CONFIG, TOKENIZER, as_json, model_files, sharded


def describe(files: dict[str, bytes]) -> tuple[str, ...]:
    sizes = {name: len(content) for name, content in files.items()}
    names, _ = describe_model(sizes, lambda name: files[name])
    return names


def index(weight_map: object) -> dict[str, bytes]:
    return sharded() | {"model.safetensors.index.json": as_json({"weight_map": weight_map})}


HOSTILE = {
    "a deep config": (model_files(config__json=b"[" * 100_000), "config.json is not JSON"),
    "a config of bytes": (model_files(config__json=b"\xff\xfe\0"), "config.json is not JSON"),
    "a config without end": (model_files(config__json=b" " * (2 << 20)), "at most 1048576"),
    "a number of a million digits": (
        model_files(config__json=b'{"vocab_size": ' + b"9" * 1_000_000 + b"}"),
        "config.json is not JSON",
    ),
    "no architecture": (model_files(config__json=as_json({})), "names no architecture"),
    "an architecture that is no word": (
        model_files(config__json=as_json(CONFIG | {"architectures": [{}]})),
        "names no architecture",
    ),
    "a context of true": (
        model_files(config__json=as_json(CONFIG | {"max_position_embeddings": True})),
        "max_position_embeddings is no positive",
    ),
    "a negative vocabulary": (
        model_files(config__json=as_json(CONFIG | {"vocab_size": -1})),
        "vocab_size is no positive",
    ),
    "a vocabulary of 2^63": (
        model_files(config__json=as_json(CONFIG | {"vocab_size": 1 << 63})),
        "vocab_size is no positive",
    ),
    "no vocabulary": (model_files(tokenizer__json=b"{}"), "no vocabulary"),
    "an empty vocabulary": (
        model_files(tokenizer__json=as_json({"model": {"vocab": {}}})),
        "no vocabulary",
    ),
    "an index that leads out": (index({"a": "../../etc/passwd"}), "file named"),
    "an index with a folder": (index({"a": "x/y.safetensors"}), "file named"),
    "an index of a pickle": (index({"a": "onnx.bin"}), "which is not there"),
    "an index of nothing": (index({"a": "gone.safetensors"}), "which is not there"),
    "an empty index": (index({}), "no weight_map"),
    "an index of lists": (index([1]), "no weight_map"),
    "an index of 2,000 shards": (index({str(n): f"{n}.safetensors" for n in range(2000)}), "2000"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_get_a_typed_error(name: str) -> None:
    files, words = HOSTILE[name]

    with pytest.raises(SourceInvalid, match=words):
        describe(files)


def test_a_gguf_beside_the_wish_for_a_folder_gets_a_hint() -> None:
    files = model_files(model__safetensors=None, onnx__bin=None, chat__gguf=b"GGUF")

    with pytest.raises(SourceInvalid) as caught:
        describe(files)

    assert caught.value.hint == "platform models import chat.gguf FOLDER"


def test_pickles_beside_safetensors_are_left_where_they_are() -> None:
    assert "onnx.bin" not in describe(model_files())


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/etc/passwd", "a/b", "a\\b", ".hidden", "a\0b", "a" * 300, "-rf", "a\n", "é"],
)
def test_names_that_may_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(SourceInvalid, match="a file named"):
        checked_name(name)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 7),
        ({"added_tokens": []}, 3),
        ({"added_tokens": [{"content": "中中中"}]}, 9),
        ({"added_tokens": "nonsense"}, 3),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}}, 7),
        ({"pre_tokenizer": None, "added_tokens": []}, 4),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, 7),
        ({"normalizer": {"type": "NFKC"}}, UNBOUNDED_TOKEN_BYTES),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Strip"}]}},
            UNBOUNDED_TOKEN_BYTES,
        ),
        ({"model": TOKENIZER["model"] | {"unk_token": "a"}}, UNBOUNDED_TOKEN_BYTES),
        ({"model": TOKENIZER["model"] | {"unk_token": "a", "byte_fallback": True}}, 7),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, UNBOUNDED_TOKEN_BYTES),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, UNBOUNDED_TOKEN_BYTES),
    ],
)
def test_the_longest_token_bounds_what_one_token_can_spell(
    change: dict[str, Any], expected: int
) -> None:
    assert longest_token_bytes(TOKENIZER | change) == expected


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("Ġword", True),
        ("ĠĠĊĠ", True),
        ("end.Ċ", True),
        ("ofĠthe", False),
        ("aĊĠb", False),
    ],
)
def test_words_bound_tokens_only_where_no_token_holds_two(token: str, *, expected: bool) -> None:
    model = TOKENIZER["model"] | {"vocab": {"a": 0, token: 1}}
    assert splits_words(TOKENIZER | {"model": model}) is expected


def test_words_bound_nothing_where_an_added_token_holds_two() -> None:
    assert splits_words(TOKENIZER)
    assert not splits_words(TOKENIZER | {"added_tokens": [{"content": "<|two words|>"}]})


def test_words_bound_nothing_where_text_may_vanish() -> None:
    assert not splits_words(TOKENIZER | {"normalizer": {"type": "Strip"}})
