"""Whom to look at: those that something happened to, and those whose time has come."""

from collections.abc import Hashable, Iterable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

_FEW: Final = 64  # void entries, beside as many as there are times

Key = TypeVar("Key", bound=Hashable)


class Agenda(Generic[Key]):
    """Everybody is on it once, at one time."""

    def __init__(self) -> None:
        self._now: set[Key] = set()
        self._times: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []  # what `_times` does not say is void
        self._pushed = 0  # keys need not be comparable

    def add(self, key: Key) -> None:
        """The next look is at it."""
        self._now.add(key)

    def add_all(self, keys: Iterable[Key]) -> None:
        """The next look is at them."""
        self._now.update(keys)

    def add_at(self, key: Key, at: float) -> None:
        """The first look from then on is at it; replaces the time it had."""
        if self._times.get(key) != at:
            self._times[key] = at
            self._pushed += 1
            heappush(self._heap, (at, self._pushed, key))
            if len(self._heap) > 2 * len(self._times) + _FEW:
                self._drop_void()

    def add_by(self, key: Key, at: float) -> None:
        """The first look from then on is at it, unless one before is: who was looked at too early
        is added again."""
        known = self._times.get(key)
        if known is None or at < known:
            self.add_at(key, at)

    def forget(self, key: Key) -> None:
        """Takes it off."""
        self._now.discard(key)
        self._times.pop(key, None)

    def is_due(self, *, now: float) -> bool:
        """Whether somebody's time has come."""
        return bool(self._heap) and self._heap[0][0] <= now

    def take(self, *, now: float, most: int | None = None) -> set[Key]:
        """What is due, of those whose time has come `most`; it is off the agenda until it is added
        again."""
        due, self._now = self._now, set()
        left = len(self._heap) if most is None else most
        while left > 0 and self._heap and self._heap[0][0] <= now:
            left -= 1
            at, _, key = heappop(self._heap)
            if self._times.get(key) == at:
                due.add(key)
        for key in due:
            self._times.pop(key, None)
        return due

    def _drop_void(self) -> None:
        """A time that is put off again and again must not be kept as often."""
        self._heap = [(at, place, key) for place, (key, at) in enumerate(self._times.items())]
        heapify(self._heap)
        self._pushed = len(self._heap)
