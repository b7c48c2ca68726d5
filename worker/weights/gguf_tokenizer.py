"""The byte-level BPE tokenizer that a GGUF carries, as the files Hugging Face tokenizers read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.gguf_file import GgufFile

Json = dict[str, Any]


class _TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """How text is cut before merges; the GGUF only names it, its meaning is llama.cpp's."""

    steps: tuple[Json, ...]
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
_GPT2: Final = _PreTokenizer((_byte_level(splits=True),))
_SINGLE_DIGITS: Final = _PreTokenizer(
    ({"type": "Digits", "individual_digits": True}, _byte_level(splits=True))
)
_LLAMA3: Final = _PreTokenizer(
    (_split(_LLAMA3_PATTERN), _byte_level(splits=False)), ignore_merges=True, adds_bos=True
)

PRE_TOKENIZERS: Final[Mapping[str, _PreTokenizer]] = {
    "gpt-2": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The content of the three JSON files, and the ids that config.json repeats."""

    tokenizer: Json
    tokenizer_config: Json
    generation_config: Json
    size: int  # tokens, special ones included
    bos: int | None
    eos: int | None


def convert_tokenizer(gguf: GgufFile, *, context_tokens: int) -> TokenizerFiles:
    """Raises UnsupportedModel for other kinds of tokenizer, SourceInvalid for a broken one."""
    pre_tokenizer = _pre_tokenizer(gguf)
    tokens = _tokens(gguf)
    ids = {name: _special_id(gguf, name, len(tokens)) for name in _SPECIAL_KEYS}
    added = _added_tokens(gguf, tokens, ids)
    return TokenizerFiles(
        tokenizer=_tokenizer_json(gguf, tokens, pre_tokenizer, added, ids),
        tokenizer_config=_tokenizer_config(gguf, tokens, ids, context_tokens),
        generation_config=_generation_config(ids),
        size=len(tokens),
        bos=ids["bos"],
        eos=ids["eos"],
    )


_SPECIAL_KEYS: Final = ("bos", "eos", "eot", "eom", "unknown", "padding")


def _pre_tokenizer(gguf: GgufFile) -> _PreTokenizer:
    kind = gguf.text("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedModel(
            f"{gguf.path.name}: tokenizer {kind!r} cannot be imported",
            hint="byte-level BPE tokenizers ('gpt2') can",
        )
    name = gguf.text("tokenizer.ggml.pre", "default")
    found = PRE_TOKENIZERS.get(name)
    if found is None:
        raise UnsupportedModel(
            f"{gguf.path.name}: pre-tokenizer {name!r} cannot be imported",
            hint=f"these can: {', '.join(PRE_TOKENIZERS)}",
        )
    return found


def _tokens(gguf: GgufFile) -> tuple[str, ...]:
    tokens = gguf.texts("tokenizer.ggml.tokens")
    if not tokens or not all(tokens) or len(set(tokens)) != len(tokens):
        raise SourceInvalid(f"{gguf.path.name}: its tokens are not distinct, or some are empty")
    return tokens


def _special_id(gguf: GgufFile, name: str, size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    return gguf.integer(key, low=0, high=size - 1) if key in gguf.metadata else None


def _added_tokens(
    gguf: GgufFile, tokens: Sequence[str], ids: Mapping[str, int | None]
) -> list[Json]:
    """Tokens that are found in the text before anything else, by ascending id."""
    types = gguf.metadata.get("tokenizer.ggml.token_type", (_TokenType.NORMAL,) * len(tokens))
    if not isinstance(types, tuple) or len(types) != len(tokens):
        raise SourceInvalid(f"{gguf.path.name}: token_type and tokens differ in length")
    special = {
        id for id, type in enumerate(types) if type in {_TokenType.CONTROL, _TokenType.UNKNOWN}
    }
    special.update(id for id in ids.values() if id is not None)
    plain = {id for id, type in enumerate(types) if type == _TokenType.USER_DEFINED} - special
    return [
        {
            "id": id,
            "content": tokens[id],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": id in special,
        }
        for id in sorted(special | plain)
    ]


def _tokenizer_json(
    gguf: GgufFile,
    tokens: Sequence[str],
    pre_tokenizer: _PreTokenizer,
    added: list[Json],
    ids: Mapping[str, int | None],
) -> Json:
    vocabulary = {token: id for id, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _in_sequence(pre_tokenizer.steps),
        "post_processor": _post_processor(gguf, tokens, pre_tokenizer, ids),
        "decoder": _byte_level(splits=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre_tokenizer.ignore_merges,
            "vocab": vocabulary,
            "merges": _merges(gguf, vocabulary),
        },
    }


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


def _post_processor(
    gguf: GgufFile,
    tokens: Sequence[str],
    pre_tokenizer: _PreTokenizer,
    ids: Mapping[str, int | None],
) -> Json | None:
    """Puts BOS in front and EOS behind, where the file asks for it."""
    before = _wanted(gguf, "add_bos_token", pre_tokenizer.adds_bos, ids["bos"])
    behind = _wanted(gguf, "add_eos_token", False, ids["eos"])
    used = [id for id in (before, behind) if id is not None]
    if not used:
        return None

    def around(name: str, type_id: int) -> list[Json]:
        text = [{"Sequence": {"id": name, "type_id": type_id}}]
        front = [
            {"SpecialToken": {"id": tokens[id], "type_id": type_id}} for id in used if id == before
        ]
        back = [
            {"SpecialToken": {"id": tokens[id], "type_id": type_id}} for id in used if id == behind
        ]
        return [*front, *text, *back]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]} for id in used
        },
    }


def _wanted(gguf: GgufFile, key: str, default: bool, id: int | None) -> int | None:
    return id if gguf.flag(f"tokenizer.ggml.{key}", default) else None


def _tokenizer_config(
    gguf: GgufFile, tokens: Sequence[str], ids: Mapping[str, int | None], context_tokens: int
) -> Json:
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_tokens,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        id = ids[name]
        if id is not None:
            config[f"{key}_token"] = tokens[id]
    if "tokenizer.chat_template" in gguf.metadata:
        config["chat_template"] = gguf.text("tokenizer.chat_template")
    return config


def _generation_config(ids: Mapping[str, int | None]) -> Json:
    """Every token that ends a turn ends a generation."""
    ends = list(dict.fromkeys(id for id in (ids["eos"], ids["eot"], ids["eom"]) if id is not None))
    config: Json = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": ids["padding"],
    }
    return {key: value for key, value in config.items() if value not in (None, [])}
