"""Which of the replicas that may take a request gets it."""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Protocol, TypeVar

# A replica that a key prefers is passed over once it has this much more than its share.
_MOST_SHARE: Final = 1.25
_MASK: Final = (1 << 64) - 1
_ODD: Final = 0x9E3779B97F4A7C15


class Load(Protocol):
    """How full one replica is; `seed` is what its name hashes to."""

    @property
    def in_flight(self) -> int: ...

    @property
    def max_concurrency(self) -> int: ...

    @property
    def seed(self) -> int: ...


_Load = TypeVar("_Load", bound=Load)


def choose(loads: Sequence[_Load], key: int | None = None) -> _Load | None:
    """The replica that takes a request; None when every permit is taken.

    Without a key the one with the smallest share of its permits taken, the first of equals. With
    one, the replica that the key likes best of those that have room and no more than 1.25 times
    their share of all requests: requests of one key meet at one replica, and a popular key spreads
    (rendezvous hashing, Thaler and Ravishankar, 1998; bounded loads, Mirrokni, Thorup and
    Zadimoghaddam, 2018). A replica that comes or goes moves no key but those it gets or had.
    """
    if key is None or len(loads) == 1:
        return _emptiest(loads)
    most = _MOST_SHARE * (1 + sum(load.in_flight for load in loads))
    permits = sum(load.max_concurrency for load in loads)
    bounded = [
        load
        for load in loads
        if load.in_flight < load.max_concurrency
        and load.in_flight * permits < most * load.max_concurrency
    ]
    if not bounded:
        return _emptiest(loads)
    return max(bounded, key=lambda load: _liking(key, load.seed))


def hash_of(*parts: bytes) -> int:
    """64 bits that are the same in every process; all parts but the last are free of NUL."""
    return int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest(), "little")


def _emptiest(loads: Sequence[_Load]) -> _Load | None:
    best: _Load | None = None
    least = 1.0
    for load in loads:
        share = load.in_flight / load.max_concurrency
        if share < least:
            best, least = load, share
    return best


def _liking(key: int, seed: int) -> int:
    mixed = ((key ^ seed) * _ODD) & _MASK
    return ((mixed ^ (mixed >> 32)) * _ODD) & _MASK
