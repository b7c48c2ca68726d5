"""How a tokenizer cuts and merges text, as tokenizer.json says it."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from infra.errors import SourceInvalid
from worker.weights.gguf_file import GgufFile

Json = dict[str, Any]


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class TextRules:
    """Everything but the tokens that are found before anything else."""

    normalizer: Json | None
    pre_tokenizer: Json | None
    decoder: Json
    model: Json
    adds_bos: bool  # unless the file says otherwise


def token_types(gguf: GgufFile, count: int) -> tuple[Any, ...]:
    """The kind of each of so many tokens; raises SourceInvalid when their number is another."""
    types = gguf.metadata.get("tokenizer.ggml.token_type", (TokenType.NORMAL,) * count)
    if not isinstance(types, tuple) or len(types) != count:
        raise SourceInvalid(f"{gguf.path.name}: token_type and tokens differ in length")
    return types
