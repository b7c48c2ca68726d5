import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from infra.errors import PlatformError, SourceInvalid, UnsupportedModel
from tests.gguf_import.corpus import CASES
from tests.gguf_import.reference import Gguf, ReferenceSentencePiece, ReferenceTokenizer
from tests.gguf_import.tiny import SPECIAL, sentencepiece_keys, trained, write_gguf
from worker.weights.gguf_import import import_gguf

FAMILIES = ("gpt-2", "smollm", "llama-bpe", "qwen2")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, ReferenceTokenizer]:
    """The imported tokenizer and the GGUF's own, of one family."""
    folder = tmp_path_factory.mktemp(request.param)
    source = write_gguf(folder / "tiny.gguf", pre=request.param)
    import_gguf(source, folder / "model", lambda fraction, step: None)
    imported = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    return imported, ReferenceTokenizer(Gguf(source))


@pytest.mark.parametrize("text", CASES)
def test_tokenisation_equals_the_ggufs_own(
    pair: tuple[Tokenizer, ReferenceTokenizer], text: str
) -> None:
    imported, reference = pair

    assert imported.encode(text, add_special_tokens=False).ids == reference.encode(text)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=12),
            st.text(alphabet=" \t\n\r'1a.中🎉", max_size=12),
            st.sampled_from([*SPECIAL, "don't", "   x", "\n  \n"]),
        ),
        max_size=8,
    ).map("".join)
)
def test_any_text_is_cut_and_merged_alike(
    pair: tuple[Tokenizer, ReferenceTokenizer], text: str
) -> None:
    imported, reference = pair
    ids = imported.encode(text, add_special_tokens=False).ids

    assert ids == reference.encode(text)
    kept = unicodedata.normalize("NFC", text) if reference.composes else text
    assert imported.decode(ids, skip_special_tokens=False) == kept


@pytest.fixture(scope="module", params=[True, False], ids=["space in front", "as it is"])
def sentencepiece(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, ReferenceSentencePiece]:
    folder = tmp_path_factory.mktemp("sentencepiece")
    keys = sentencepiece_keys(has_prefix=request.param)
    tokenizer = imported_tokenizer(folder, **with_tokens(keys))
    return tokenizer, ReferenceSentencePiece(Gguf(folder / "tiny.gguf"))


def with_tokens(keys: dict[str, Any]) -> dict[str, Any]:
    table = np.ones((len(keys["tokenizer.ggml.tokens"]), 64), np.float32)
    return {"keys": keys, "changed": {"token_embd.weight": table}}


@pytest.mark.parametrize("text", [*CASES, "<s>the cat</s> sat", " <s> on the mat<unk>"])
def test_pieces_are_merged_by_their_scores(
    sentencepiece: tuple[Tokenizer, ReferenceSentencePiece], text: str
) -> None:
    imported, reference = sentencepiece
    ids = imported.encode(text, add_special_tokens=False).ids

    assert ids == reference.encode(text)
    if not any(special in text for special in reference.special):
        assert imported.decode(ids, skip_special_tokens=False) == text


def test_sentencepiece_puts_bos_in_front_and_spells_what_it_has_no_piece_for(
    tmp_path: Path,
) -> None:
    keys = sentencepiece_keys() | {"tokenizer.ggml.add_bos_token": None}
    tokenizer = imported_tokenizer(tmp_path, **with_tokens(keys))

    ids = tokenizer.encode("ж").ids

    assert [tokenizer.id_to_token(id) for id in ids] == ["<s>", "\u2581", "<0xD0>", "<0xB6>"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer.ggml.scores": [1.0]}, "scores and tokens differ"),
        ({"tokenizer.ggml.scores": None}, "scores and tokens differ"),
        ({"tokenizer.ggml.add_space_prefix": 1}, "not a boolean"),
    ],
)
def test_a_broken_sentencepiece_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(SourceInvalid, match=words):
        imported_tokenizer(tmp_path, **with_tokens(sentencepiece_keys() | change))


def test_pieces_too_long_to_be_cut_everywhere_are_refused(tmp_path: Path) -> None:
    keys = sentencepiece_keys()
    keys["tokenizer.ggml.tokens"][-1] = "a" * 300

    with pytest.raises(SourceInvalid, match="too long"):
        imported_tokenizer(tmp_path, **with_tokens(keys))


def imported_tokenizer(folder: Path, **changes: object) -> Tokenizer:
    source = write_gguf(folder / "tiny.gguf", **changes)  # type: ignore[arg-type]
    import_gguf(source, folder / "model", lambda fraction, step: None)
    return Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))


def test_the_file_decides_whether_bos_and_eos_are_added(tmp_path: Path) -> None:
    tokenizer = imported_tokenizer(
        tmp_path, keys={"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    )

    plain = tokenizer.encode("the cat", add_special_tokens=False).ids

    assert tokenizer.encode("the cat").ids == [1, *plain, 2]


def test_llama_bpe_adds_bos_unless_the_file_says_no(tmp_path: Path) -> None:
    tokenizer = imported_tokenizer(
        tmp_path, pre="llama-bpe", keys={"tokenizer.ggml.add_bos_token": None}
    )

    assert tokenizer.encode("the cat").ids[0] == 1


def test_user_defined_tokens_are_found_in_text_and_kept_when_special_ones_are_skipped(
    tmp_path: Path,
) -> None:
    tokens, _ = trained("", 0)
    tokenizer = imported_tokenizer(
        tmp_path,
        keys={
            "tokenizer.ggml.tokens": [*tokens, "ab", "<tool>"],
            "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 2) + [4],
            "tokenizer.ggml.merges": ["a b"],
        },
        changed={"token_embd.weight": np.ones((len(tokens) + 2, 64), np.float32)},
    )

    ids = tokenizer.encode("ab<tool><|im_end|>").ids

    assert ids == [len(tokens), len(tokens) + 1, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab<tool>"


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"tokenizer.ggml.model": "t5"}, UnsupportedModel, "tokenizer 't5'"),
        ({"tokenizer.ggml.pre": "falcon"}, UnsupportedModel, "pre-tokenizer 'falcon'"),
        ({"tokenizer.ggml.pre": None}, UnsupportedModel, "pre-tokenizer 'default'"),
        ({"tokenizer.ggml.model": "llama"}, SourceInvalid, "scores and tokens differ in length"),
        ({"tokenizer.ggml.tokens": None}, SourceInvalid, "tokens is missing"),
        ({"tokenizer.ggml.tokens": ["a", "a", "b"]}, SourceInvalid, "not distinct"),
        ({"tokenizer.ggml.merges": ["nospace"]}, SourceInvalid, "'nospace' joins no tokens"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, SourceInvalid, "joins no tokens"),
        ({"tokenizer.ggml.token_type": [1, 1]}, SourceInvalid, "differ in length"),
        ({"tokenizer.ggml.eos_token_id": 1 << 30}, SourceInvalid, "eos_token_id is not"),
    ],
)
def test_what_cannot_be_converted_faithfully_is_refused(
    tmp_path: Path, keys: dict[str, object], error: type[PlatformError], words: str
) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", keys=keys)

    with pytest.raises(error, match=words):
        import_gguf(source, tmp_path / "model", lambda fraction, step: None)

    assert not (tmp_path / "model").exists()
