"""Byte-level BPE of a GGUF, whose pre-tokenizer it only names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.gguf_file import GgufFile
from worker.weights.gguf_text_rules import Json, TextRules


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """How text is cut before merges; the GGUF only names it, its meaning is llama.cpp's."""

    steps: tuple[Json, ...]
    normalizer: Json | None = None
    ignore_merges: bool = False  # a piece that is a token is taken whole
    adds_bos: bool = False  # unless the file says otherwise


def _byte_level(*, splits: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": splits,
    }


def _split(pattern: str) -> Json:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


_LLAMA3_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_PATTERN: Final = _LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2: Final = _PreTokenizer((_byte_level(splits=True),))
_SINGLE_DIGITS: Final = _PreTokenizer(
    ({"type": "Digits", "individual_digits": True}, _byte_level(splits=True))
)
_LLAMA3: Final = _PreTokenizer(
    (_split(_LLAMA3_PATTERN), _byte_level(splits=False)), ignore_merges=True, adds_bos=True
)
_QWEN2: Final = _PreTokenizer(
    (_split(_QWEN2_PATTERN), _byte_level(splits=False)), normalizer={"type": "NFC"}
)

PRE_TOKENIZERS: Final[Mapping[str, _PreTokenizer]] = {
    "gpt-2": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
}


def byte_level_rules(gguf: GgufFile, tokens: Sequence[str]) -> TextRules:
    """Raises UnsupportedModel for an unknown pre-tokenizer, SourceInvalid for broken merges."""
    name = gguf.text("tokenizer.ggml.pre", "default")
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        raise UnsupportedModel(
            f"{gguf.path.name}: pre-tokenizer {name!r} cannot be imported",
            hint=f"these can: {', '.join(PRE_TOKENIZERS)}",
        )
    vocabulary = {token: id for id, token in enumerate(tokens)}
    return TextRules(
        normalizer=found.normalizer,
        pre_tokenizer=_in_sequence(found.steps),
        decoder=_byte_level(splits=True),
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": found.ignore_merges,
            "vocab": vocabulary,
            "merges": _merges(gguf, vocabulary),
        },
        adds_bos=found.adds_bos,
    )


def _in_sequence(steps: Sequence[Json]) -> Json:
    if len(steps) == 1:
        return steps[0]
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _merges(gguf: GgufFile, vocabulary: Mapping[str, int]) -> list[list[str]]:
    merges = []
    for merge in gguf.texts("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or not {left, right, left + right} <= vocabulary.keys():
            raise SourceInvalid(f"{gguf.path.name}: the merge {merge[:80]!r} joins no tokens")
        merges.append([left, right])
    return merges
