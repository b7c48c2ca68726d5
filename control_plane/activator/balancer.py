"""Which of the replicas that may take a request gets it."""

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Load(Protocol):
    """How full one replica is."""

    @property
    def in_flight(self) -> int: ...

    @property
    def max_concurrency(self) -> int: ...


_Load = TypeVar("_Load", bound=Load)


def choose(loads: Iterable[_Load]) -> _Load | None:
    """The replica with the smallest share of its permits taken, the first of equals.

    None when every permit is taken.
    """
    best: _Load | None = None
    least = 1.0
    for load in loads:
        share = load.in_flight / load.max_concurrency
        if share < least:
            best, least = load, share
    return best
