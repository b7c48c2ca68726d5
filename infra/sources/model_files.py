"""Which files of a source make up a model, and what its config and tokenizer say of it."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from infra.contracts.revision import ModelFacts
from infra.errors import SourceInvalid

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
OPTIONAL: Final = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
PICKLED_SUFFIXES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

MAX_LISTED: Final = 10_000
MAX_SHARDS: Final = 1000
MAX_READ_BYTES: Final = {CONFIG: 1 << 20, INDEX: 16 << 20, TOKENIZER: 64 << 20}
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")

# White space between other characters: as it is and as U+2581, or in the byte-level alphabet.
_TWO_WORDS: Final = re.compile(r"[^\s\u2581][\s\u2581]+[^\s\u2581]")
_TWO_WORDS_BYTE_LEVEL: Final = re.compile(
    r"[^\u0109-\u010d\u0120][\u0109-\u010d\u0120]+[^\u0109-\u010d\u0120]"
)

# Where a tokenizer may swallow any number of bytes in one token, no bound can be given.
UNBOUNDED_TOKEN_BYTES: Final = 1 << 20

Read = Callable[[str], bytes]
Json = dict[str, Any]


def describe_model(sizes: Mapping[str, int], read: Read) -> tuple[tuple[str, ...], ModelFacts]:
    """The names a model needs of all those in a source's folder, sorted, and its facts.

    `sizes` maps file names to bytes; `read` gets a small file's content. Raises SourceInvalid.
    """
    for required in (CONFIG, TOKENIZER):
        if required not in sizes:
            raise SourceInvalid(f"the source has no {required}", path=required)
    weights = _weight_files(sizes, read)
    names = {CONFIG, TOKENIZER, *weights, *(name for name in OPTIONAL if name in sizes)}
    if INDEX in sizes:
        names.add(INDEX)
    facts = _facts(
        config=_read_json(CONFIG, sizes, read),
        tokenizer=_read_json(TOKENIZER, sizes, read),
        weight_bytes=sum(sizes[name] for name in weights),
    )
    return tuple(sorted(names)), facts


def checked_name(name: str) -> str:
    """The name itself, if it cannot lead out of its folder; raises SourceInvalid."""
    if not PLAIN_NAME.fullmatch(name):
        raise SourceInvalid(f"the source lists a file named {name[:100]!a}", path=name[:100])
    return name


def _weight_files(sizes: Mapping[str, int], read: Read) -> tuple[str, ...]:
    if INDEX in sizes:
        return _shards(sizes, read)
    if SINGLE in sizes:
        return (SINGLE,)
    pickled = sorted(name for name in sizes if name.endswith(PICKLED_SUFFIXES))
    if pickled:
        raise SourceInvalid(
            f"the source has only pickled weights ({pickled[0]}), which can run code when loaded",
            hint="convert them to safetensors",
            path=pickled[0],
        )
    ggufs = sorted(name for name in sizes if name.endswith(".gguf"))
    raise SourceInvalid(
        f"the source has no {SINGLE} and no {INDEX}",
        hint=f"platform models import {ggufs[0]} FOLDER" if ggufs else None,
        path=SINGLE,
    )


def _shards(sizes: Mapping[str, int], read: Read) -> tuple[str, ...]:
    weight_map = _read_json(INDEX, sizes, read).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceInvalid(f"{INDEX} has no weight_map", path=INDEX)
    names = sorted({str(name) for name in weight_map.values()})
    if len(names) > MAX_SHARDS:
        raise SourceInvalid(f"{INDEX} names {len(names)} shards, at most {MAX_SHARDS}", path=INDEX)
    for name in names:
        checked_name(name)
        if not name.endswith(".safetensors") or name not in sizes:
            raise SourceInvalid(f"{INDEX} names {name}, which is not there", path=name)
    return tuple(names)


def _read_json(name: str, sizes: Mapping[str, int], read: Read) -> Json:
    limit = MAX_READ_BYTES[name]
    if sizes[name] > limit:
        raise SourceInvalid(f"{name} has {sizes[name]} bytes, at most {limit}", path=name)
    try:
        content = json.loads(read(name)[: limit + 1])
    except (ValueError, RecursionError) as error:
        raise SourceInvalid(f"{name} is not JSON: {error}", path=name) from None
    if not isinstance(content, dict):
        raise SourceInvalid(f"{name} is not a JSON object", path=name)
    return content


def _facts(*, config: Json, tokenizer: Json, weight_bytes: int) -> ModelFacts:
    architectures = config.get("architectures")
    match architectures:
        case [str(architecture), *_]:
            pass
        case _:
            raise SourceInvalid(f"{CONFIG} names no architecture", path=CONFIG)
    return ModelFacts(
        architecture=architecture[:200],
        context_tokens=_count(config, "max_position_embeddings"),
        vocabulary=_count(config, "vocab_size"),
        weight_bytes=weight_bytes,
        hidden_size=_count(config, "hidden_size") if "hidden_size" in config else None,
        longest_token_bytes=longest_token_bytes(tokenizer),
        splits_words=splits_words(tokenizer),
    )


def _count(config: Json, key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 31:
        raise SourceInvalid(f"{CONFIG}: {key} is no positive whole number", path=CONFIG)
    return value


def longest_token_bytes(tokenizer: Json) -> int:
    """Bytes of text that one token can stand for at most; raises SourceInvalid without tokens.

    Exact for byte-level BPE, an upper bound where spaces are marked by U+2581, and
    UNBOUNDED_TOKEN_BYTES for tokenizers that rewrite text or give unknown text one token.
    """
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vocabulary, dict) or not vocabulary:
        if isinstance(vocabulary, list) and vocabulary:  # unigram: unknown runs become one token
            return UNBOUNDED_TOKEN_BYTES
        raise SourceInvalid(f"{TOKENIZER} has no vocabulary", path=TOKENIZER)
    if not _keeps_every_byte(tokenizer, model):
        return UNBOUNDED_TOKEN_BYTES
    spelled = len if _is_byte_level(tokenizer) else _utf8_length
    longest = max(map(spelled, vocabulary))
    return max(1, longest, *map(_utf8_length, _added_contents(tokenizer)))


def splits_words(tokenizer: Json) -> bool:
    """Whether no token holds an end of one word, white space, and the beginning of another.

    Then a text has at least as many tokens as runs of bytes that are not ASCII white space. False
    for tokenizers of which that cannot be told.
    """
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not (isinstance(model, dict) and isinstance(vocabulary, dict)):
        return False
    if not _keeps_every_byte(tokenizer, model):
        return False
    spans = _TWO_WORDS_BYTE_LEVEL if _is_byte_level(tokenizer) else _TWO_WORDS
    return not (
        any(map(spans.search, vocabulary))
        or any(map(_TWO_WORDS.search, _added_contents(tokenizer)))
    )


def _is_byte_level(tokenizer: Json) -> bool:
    return "ByteLevel" in _step_types(tokenizer.get("pre_tokenizer"))


def _added_contents(tokenizer: Json) -> list[str]:
    added = tokenizer.get("added_tokens")
    return [
        str(token.get("content", ""))
        for token in (added if isinstance(added, list) else ())
        if isinstance(token, dict)
    ]


def _keeps_every_byte(tokenizer: Json, model: Json) -> bool:
    """Whether no text disappears in a normalizer or in an unknown token."""
    rewrites = _step_types(tokenizer.get("normalizer")) - {"Sequence", "Prepend", "Replace"}
    drops_unknown = model.get("unk_token") is not None and not model.get("byte_fallback")
    return model.get("type") == "BPE" and not rewrites and not drops_unknown


def _step_types(step: Any) -> set[str]:
    """The types in a tree of pre-tokenizers or normalizers, a few levels deep."""
    found: set[str] = set()
    level = [step]
    for _ in range(4):
        known = [item for item in level if isinstance(item, dict)]
        found.update(str(item.get("type")) for item in known)
        level = [
            inner
            for item in known
            for key in ("pretokenizers", "normalizers")
            if isinstance(item.get(key), list)
            for inner in item[key]
        ]
    return found


def _utf8_length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
