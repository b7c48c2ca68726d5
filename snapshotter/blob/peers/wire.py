"""What nodes say to one another: chunks of a blob by their places in its table.

    GET /v1/blobs/<digest>/chunks/<first>-<last>[?fetch]     Authorization: Bearer …
                                                             Firstlight-Table: …

The answer's body is the uncompressed bytes of those chunks, one after the other, up to the first
that is not here. With `fetch` a node brings what it has not, if it is the chunks' home; what it is
bringing from the origin anyway is waited for. 202: the first is still on its way from there; 404:
it is not here; 409: its table differs; 503: busy.
"""

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from snapshotter.index.chunk_table import Chunk

MOST_ANSWER_BYTES: Final = 64 << 20  # one chunk may be as large
_PURPOSE: Final = b"firstlight: asking for chunks"
_PATH: Final = re.compile(
    r"/v1/blobs/(?P<digest>sha256:[0-9a-f]{64})/chunks/"
    r"(?P<first>\d{1,7})-(?P<last>\d{1,7})(?P<fetch>\?fetch)?"
)


@dataclass(frozen=True, slots=True)
class ChunksAsked:
    """A request; both ends are included."""

    digest: str
    first: int
    last: int
    may_fetch: bool


def bearer_of(token: str) -> str:
    """What is shown instead of the token: who may write to the directory has it shown to himself,
    and is not to sign what the token signs.
    """
    assert token, "whoever may ask must be able to say so"
    return hmac.digest(token.encode(), _PURPOSE, "sha256").hex()


def chunks_path(digest: str, chunks: Sequence[Chunk], *, may_fetch: bool) -> str:
    """The path and query that ask for neighbouring chunks."""
    span = f"{chunks[0].index}-{chunks[-1].index}"
    return f"/v1/blobs/{digest}/chunks/{span}{'?fetch' if may_fetch else ''}"


def parse_path(path: str) -> ChunksAsked | None:
    """The inverse of `chunks_path`; None for any other path."""
    match = _PATH.fullmatch(path)
    if match is None or int(match["first"]) > int(match["last"]):
        return None
    first, last = int(match["first"]), int(match["last"])
    return ChunksAsked(match["digest"], first, last, match["fetch"] is not None)
