"""Texts that models are measured on; texts/ABOUT.md says where they are from."""

from collections.abc import Iterator, Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent / "texts"


def read_texts() -> list[str]:
    """Prose, dialogue, code, instructions, logs: about 2,400 words of English, always the same."""
    return [path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.txt"))]


def windows(
    documents: Sequence[Sequence[int]], *, window: int, most_tokens: int
) -> Iterator[Sequence[int]]:
    """Pieces of at most `window` tokens, none across two documents, until `most_tokens` in all.

    A piece of one token predicts nothing and is left out.
    """
    left = most_tokens
    for document in documents:
        for start in range(0, len(document), window):
            piece = document[start : start + min(window, left)]
            left -= len(piece)
            if len(piece) > 1:
                yield piece
