"""Reads whose bytes are on their way, and the programs that die meanwhile."""

from collections.abc import Callable
from pathlib import Path
from threading import Condition, Thread

from snapshotter.fs.fuse_wire import Request

_DEATH_WATCH_S = 0.1
_SIGKILL_BIT = 1 << 8
_PENDING = ("SigPnd:", "ShdPnd:")


class WaitingReads:
    """Whoever takes a read out of here answers it, and nobody else does.

    The kernel tells of the first signal only, and most signals end nothing: a program that
    was told to end and is killed ten seconds later must be let go then. So one that was interrupted
    is watched until it dies or has its answer.
    """

    def __init__(self) -> None:
        self._changed = Condition()  # guards both dictionaries
        self._reads: dict[int, Request] = {}
        self._interrupted: dict[int, Callable[[int], None]] = {}

    def start(self) -> None:
        """Begins to watch, in a thread that ends with the process."""
        Thread(target=self._watch, name="fuse-interrupted", daemon=True).start()

    def add(self, request: Request) -> None:
        with self._changed:
            self._reads[request.unique] = request

    def has(self, unique: int) -> bool:
        with self._changed:
            return unique in self._reads

    def take(self, unique: int) -> bool:
        """True if the read was there: the caller answers it."""
        with self._changed:
            self._interrupted.pop(unique, None)
            return self._reads.pop(unique, None) is not None

    def is_interrupted(self, unique: int) -> bool:
        """Whether who waits for the read is watched."""
        with self._changed:
            return unique in self._interrupted

    def interrupt(self, unique: int, *, on_death: Callable[[int], None]) -> bool:
        """Watches who waits for the read; False if there is no such read.

        `on_death` is called with `unique`, once, and answers the read.
        """
        with self._changed:
            if unique not in self._reads:
                return False
            self._interrupted[unique] = on_death
            self._changed.notify()
            return True

    def _watch(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._interrupted)
                watched = [
                    (unique, self._reads[unique].thread_id, on_death)
                    for unique, on_death in self._interrupted.items()
                ]
            for unique, thread_id, on_death in watched:
                if is_dying(thread_id) and self.take(unique):
                    on_death(unique)
            with self._changed:
                self._changed.wait(_DEATH_WATCH_S)


def is_dying(thread_id: int) -> bool:
    """Whether the thread is to be killed as soon as it waits no longer, or is gone.

    0 is one that the kernel does not show us; it counts as alive.
    """
    if not thread_id:
        return False
    try:
        status = Path(f"/proc/{thread_id}/status").read_text()
    except OSError:
        return True
    pending = (line.split()[1] for line in status.splitlines() if line.startswith(_PENDING))
    return any(int(signals, 16) & _SIGKILL_BIT for signals in pending)
