"""How far a revision's climb has come, told to those who wait for it."""

import asyncio
from collections.abc import Callable

from control_plane.fleet.replica import Climb

INTERVAL_S = 0.1


class Bulletin:
    """Calls its readers after news, at most every INTERVAL_S; costs nothing while nobody reads."""

    def __init__(self) -> None:
        self._readers: dict[Callable[[], None], None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        """There is news."""
        if self._readers and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._publish)

    def read(self, reader: Callable[[], None]) -> None:
        """Calls the reader once, at the next news."""
        self._readers[reader] = None

    def ignore(self, reader: Callable[[], None]) -> None:
        """The reader wants no news any more."""
        self._readers.pop(reader, None)

    def _publish(self) -> None:
        self._timer = None
        readers, self._readers = self._readers, {}
        for reader in readers:
            reader()


def progress_comment(climb: Climb | None) -> bytes:
    """A server-sent comment that says where the climb is, as in `: stage weights 40%`."""
    if climb is None or climb.progress is None:
        return b": stage queue 0%\n\n"
    progress = climb.progress
    return f": stage {progress.stage.value} {int(progress.fraction * 100)}%\n\n".encode("ascii")
