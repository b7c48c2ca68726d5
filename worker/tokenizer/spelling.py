"""The exact bytes each token stands for."""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from tokenizers import Tokenizer

from infra.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a vocabulary's strings are to be read.

    `byte_level`: every character stands for one byte (GPT-2). `byte_fallback`: text with U+2581 for
    a space, and `<0xAB>` for a single byte (SentencePiece); such a decoder may drop the space that
    begins a text.
    """

    kind: Literal["byte_level", "byte_fallback"]
    drops_first_space: bool = False

    def bytes_of(self, token: str) -> bytes:
        """The bytes of a token of the vocabulary's own."""
        if self.kind == "byte_level":
            alphabet = _byte_of_character()
            if all(character in alphabet for character in token):
                return bytes(alphabet[character] for character in token)
            return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace("\u2581", " ").encode()


def decoding_of(tokenizer: Tokenizer) -> Decoding:
    """Raises UnsupportedModel for a decoder that is neither of the two."""
    decoder = tokenizer.decoder
    description = json.loads(decoder.__getstate__()) if decoder is not None else {}
    match description:
        case {"type": "ByteLevel"}:
            return Decoding("byte_level")
        case {"type": "Sequence", "decoders": list(parts)}:
            return _decoding_of_parts(parts)
        case _:
            raise UnsupportedModel(
                f"tokenizer.json decodes with {description.get('type', 'nothing')!r}",
                hint="byte-level BPE and SentencePiece with byte fallback are understood",
            )


def _decoding_of_parts(parts: list[dict[str, Any]]) -> Decoding:
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        return Decoding("byte_level")
    if "ByteFallback" in kinds:
        strips = (part for part in parts if part.get("type") == "Strip")
        return Decoding("byte_fallback", any(part.get("start", 0) > 0 for part in strips))
    raise UnsupportedModel("tokenizer.json decodes in a way that this engine does not know")


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others are moved up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}
