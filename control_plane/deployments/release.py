"""What a model's requests go to, and to which of its revisions each of them goes."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from infra.contracts.revision import Revision

Shuffle = Callable[[list[Revision]], None]


class Share(NamedTuple):
    """So many of a hundred requests go to a revision."""

    revision: Revision
    percent: int


@dataclass(frozen=True, slots=True)
class Release:
    """The revisions of a model that are in traffic, the largest share first, of equals the newest.

    Percents are at least 1 and add up to 100. `generation` grows with every change of the model.
    """

    shares: tuple[Share, ...]
    generation: int

    @property
    def leading(self) -> Revision:
        """The revision that speaks for the model where only one can."""
        return self.shares[0].revision

    @property
    def revisions(self) -> tuple[Revision, ...]:
        return tuple(share.revision for share in self.shares)


class Route:
    """Chooses a revision for each request; owns whose turn it is.

    Requests of one key stay together as long as the shares let them: by weighted rendezvous hashing
    (Schindelhauer and Schomaker, 2005) a key moves only to a revision whose share has grown against
    that of its own. The others take turns in rounds that hold exactly the shares, in an order drawn
    anew each time, so that no rhythm of the requests can favour a revision.
    """

    def __init__(self, release: Release, *, shuffle: Shuffle = random.shuffle) -> None:
        self.release = release
        self._turns = _turns(release.shares, shuffle)

    def pick(self, key: int | None) -> Revision:
        """The revision that the next request, or any one of the key, goes to."""
        shares = self.release.shares
        if len(shares) == 1:
            return shares[0].revision
        if key is None:
            return next(self._turns)
        return max(shares, key=lambda share: _liking(key, share)).revision


def _turns(shares: Sequence[Share], shuffle: Shuffle) -> Iterator[Revision]:
    common = math.gcd(*(share.percent for share in shares))
    turns = [share.revision for share in shares for _ in range(share.percent // common)]
    while True:
        shuffle(turns)
        yield from turns


def _liking(key: int, share: Share) -> float:
    """Percent / -ln(u), where u is even in (0, 1) and belongs to the key and the revision."""
    digest = blake2b(b"%x@%s" % (key, share.revision.name.encode()), digest_size=8).digest()
    even = ((int.from_bytes(digest, "little") >> 12) + 0.5) / (1 << 52)  # 52 bits: never 0 or 1
    return -share.percent / math.log(even)
