"""Keeps a held stream company: tells its client how far the climb is."""

import asyncio
from collections.abc import Callable

from control_plane.activator.bulletin import Bulletin, progress_comment
from control_plane.activator.call import Downstream, Header
from control_plane.fleet.replica import Climb

# Proxies in front of us give up on a silent response after 30 to 60 s; we speak well before that.
FIRST_WORD_S = 10.0
NEXT_WORD_S = 10.0

_STREAM_HEAD = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
)


class Company:
    """Speaks at once if the client asks for it, else if the climb takes long; then at every news,
    and in time without any.

    `bulletin`, `climb` and `identity` are of the revision that the request waits for now.
    """

    def __init__(
        self,
        client: Downstream,
        *,
        bulletin: Callable[[], Bulletin],
        climb: Callable[[], Climb | None],
        identity: Callable[[], list[Header]],
    ) -> None:
        self._client = client
        self._bulletin = bulletin
        self._climb = climb
        self._identity = identity
        self._reading: Bulletin | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._said = b""

    def begin(self, *, at_once: bool) -> None:
        """The request waits."""
        if at_once or self._client.has_started:
            self._speak()
        else:
            self._timer = asyncio.get_running_loop().call_later(FIRST_WORD_S, self._speak)

    def end(self) -> None:
        """It waits no more; may be repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reading is not None:
            self._reading.ignore(self._speak)
            self._reading = None

    def _speak(self) -> None:
        self.end()
        if not self._client.has_started:
            self._client.start(200, (*_STREAM_HEAD, *self._identity()))
        comment = progress_comment(self._climb())
        if comment != self._said:
            self._client.send(comment)
            self._said = comment
        self._reading = self._bulletin()
        self._reading.read(self._speak)
        self._timer = asyncio.get_running_loop().call_later(NEXT_WORD_S, self._speak_again)

    def _speak_again(self) -> None:
        """Nothing new, but a word in time."""
        self._said = b""
        self._speak()
