"""Requests for files that are still being opened, kept until those are there or have failed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Final

from snapshotter.fs.fuse_wire import Request
from snapshotter.fs.waiting_reads import WaitingReads

# An index that has to be made anew takes a download and ten seconds a GB; who waits longer than
# this for one is told.
PATIENCE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Late:
    request: Request
    name: str
    until: float


class LateRequests:
    """No thread waits with them: thousands may be late, and hold up nobody's fetching."""

    def __init__(
        self,
        waiting: WaitingReads,
        is_under_way: Callable[[str], bool],
        handle: Callable[[Request, str, bool], None],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`handle` answers a request, or refuses it where its file is still not there; it hears
        whether who waits was interrupted. Whoever takes a request out of `waiting` answers it.
        """
        self._waiting = waiting
        self._is_under_way = is_under_way
        self._handle = handle
        self._patience_s = patience_s
        self._changed = Condition()  # guards the next
        self._late: list[_Late] = []  # in the order of their deadlines

    def start(self) -> None:
        Thread(target=self._watch, name="fuse-late", daemon=True).start()

    def add(self, request: Request, name: str) -> None:
        self._waiting.add(request)
        with self._changed:
            self._late.append(_Late(request, name, time.monotonic() + self._patience_s))
            self._changed.notify()

    def settled(self) -> None:
        """An opening has ended, well or not."""
        with self._changed:
            self._changed.notify()

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not (due := self._taken_due()):
                    self._changed.wait(self._most_s())
            for late in due:
                is_interrupted = self._waiting.is_interrupted(late.request.unique)
                if self._waiting.take(late.request.unique):
                    self._handle(late.request, late.name, is_interrupted)

    def _taken_due(self) -> list[_Late]:
        now = time.monotonic()
        due: list[_Late] = []
        rest: list[_Late] = []
        for late in self._late:
            is_due = now >= late.until or not self._is_under_way(late.name)
            (due if is_due else rest).append(late)
        self._late = rest
        return due

    def _most_s(self) -> float | None:
        return max(0.0, self._late[0].until - time.monotonic()) if self._late else None
