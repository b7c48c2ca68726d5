"""The tokenizer that a GGUF carries, as the files Hugging Face tokenizers read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.gguf_byte_level import byte_level_rules
from worker.weights.gguf_file import GgufFile
from worker.weights.gguf_sentencepiece import sentencepiece_rules
from worker.weights.gguf_text_rules import Json, TextRules, TokenType, token_types


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
    tokens = _tokens(gguf)
    rules = _rules(gguf, tokens)
    ids = {name: _special_id(gguf, name, len(tokens)) for name in _SPECIAL_KEYS}
    added = _added_tokens(gguf, tokens, ids)
    return TokenizerFiles(
        tokenizer=_tokenizer_json(gguf, tokens, rules, added, ids),
        tokenizer_config=_tokenizer_config(gguf, tokens, ids, context_tokens),
        generation_config=_generation_config(ids),
        size=len(tokens),
        bos=ids["bos"],
        eos=ids["eos"],
    )


_SPECIAL_KEYS: Final = ("bos", "eos", "eot", "eom", "unknown", "padding")


def _rules(gguf: GgufFile, tokens: Sequence[str]) -> TextRules:
    match gguf.text("tokenizer.ggml.model"):
        case "gpt2":
            return byte_level_rules(gguf, tokens)
        case "llama":
            return sentencepiece_rules(gguf, tokens)
        case kind:
            raise UnsupportedModel(
                f"{gguf.path.name}: tokenizer {kind!r} cannot be imported",
                hint="byte-level BPE ('gpt2') and SentencePiece with scores ('llama') can",
            )


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
    types = token_types(gguf, len(tokens))
    special = {
        id for id, type in enumerate(types) if type in {TokenType.CONTROL, TokenType.UNKNOWN}
    }
    special.update(id for id in ids.values() if id is not None)
    plain = {id for id, type in enumerate(types) if type == TokenType.USER_DEFINED} - special
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
    rules: TextRules,
    added: list[Json],
    ids: Mapping[str, int | None],
) -> Json:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": rules.normalizer,
        "pre_tokenizer": rules.pre_tokenizer,
        "post_processor": _post_processor(gguf, tokens, rules, ids),
        "decoder": rules.decoder,
        "model": rules.model,
    }


def _post_processor(
    gguf: GgufFile,
    tokens: Sequence[str],
    rules: TextRules,
    ids: Mapping[str, int | None],
) -> Json | None:
    """Puts BOS in front and EOS behind, where the file asks for it."""
    before = _wanted(gguf, "add_bos_token", rules.adds_bos, ids["bos"])
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
