"""SentencePiece BPE of a GGUF (Llama 2, Mistral, Gemma, Phi-3): pieces with scores, and bytes."""

from collections.abc import Iterator, Sequence
from typing import Final

from infra.errors import SourceInvalid
from worker.weights.gguf_file import GgufFile
from worker.weights.gguf_text_rules import Json, TextRules, TokenType, token_types

_SPACE: Final = "\u2581"
# Every way to cut every piece in two is looked up: bounds of what a file makes us do.
_LONGEST_PIECE: Final = 256
_MOST_CHARACTERS: Final = 16 << 20
_PIECES: Final = frozenset({TokenType.NORMAL, TokenType.USER_DEFINED})


def sentencepiece_rules(gguf: GgufFile, tokens: Sequence[str]) -> TextRules:
    """Raises SourceInvalid for scores or pieces that make no sense.

    SentencePiece merges the neighbours whose union has the highest score. Merges in the order of
    these scores do the same, each piece made of any two pieces that there are.
    """
    types = token_types(gguf, len(tokens))
    unknown = [
        token for token, type in zip(tokens, types, strict=True) if type == TokenType.UNKNOWN
    ]
    has_prefix = gguf.flag("tokenizer.ggml.add_space_prefix", True)
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prefix: Json = {"type": "Prepend", "prepend": _SPACE}
    text: Json = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    decoders: list[Json] = [text, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return TextRules(
        normalizer={"type": "Sequence", "normalizers": [prefix, spaces]} if has_prefix else spaces,
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        model={
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown[0] if unknown else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": list(_merges(gguf, tokens, types)),
        },
        adds_bos=True,
    )


def _merges(
    gguf: GgufFile, tokens: Sequence[str], types: Sequence[TokenType]
) -> Iterator[list[str]]:
    scores = _scores(gguf, len(tokens))
    ids = [id for id, type in enumerate(types) if type in _PIECES]
    pieces = {tokens[id] for id in ids}
    if (
        sum(map(len, pieces)) > _MOST_CHARACTERS
        or max(map(len, pieces), default=0) > _LONGEST_PIECE
    ):
        raise SourceInvalid(f"{gguf.path.name}: its tokens are too long")
    for id in sorted(ids, key=lambda id: -scores[id]):
        piece = tokens[id]
        for cut in range(1, len(piece)):
            if piece[:cut] in pieces and piece[cut:] in pieces:
                yield [piece[:cut], piece[cut:]]


def _scores(gguf: GgufFile, count: int) -> tuple[float, ...]:
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, tuple) or len(scores) != count:
        raise SourceInvalid(f"{gguf.path.name}: scores and tokens differ in length")
    numbers = tuple(score for score in scores if isinstance(score, float) and score == score)
    if len(numbers) != count:
        raise SourceInvalid(f"{gguf.path.name}: its scores are no numbers")
    return numbers
