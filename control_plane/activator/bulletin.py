"""How far a revision's climb has come, told to those who wait for it."""

import asyncio

from control_plane.fleet.replica import Climb

INTERVAL_S = 0.1


class Bulletin:
    """Wakes its readers after news, at most every INTERVAL_S; costs nothing while nobody reads."""

    def __init__(self) -> None:
        self._news: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ring(self) -> None:
        """There is news."""
        if self._news is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._publish)

    def news(self) -> asyncio.Future[None]:
        """Done at the next news; shared by all readers, so nobody may cancel it."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        return self._news

    def _publish(self) -> None:
        self._timer = None
        news, self._news = self._news, None
        if news is not None:
            news.set_result(None)


def progress_comment(climb: Climb | None) -> bytes:
    """A server-sent comment that says where the climb is, as in `: stage weights 40%`."""
    if climb is None or climb.progress is None:
        return b": stage queue 0%\n\n"
    progress = climb.progress
    return f": stage {progress.stage.value} {int(progress.fraction * 100)}%\n\n".encode("ascii")
