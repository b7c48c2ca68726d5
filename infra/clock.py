"""Time as an argument: who needs the clock asks for one of these."""

import time
from pathlib import Path
from typing import Final, Protocol

from infra.contracts.node import ClockReading


class Clock(Protocol):
    """Unix seconds that never step back."""

    def now(self) -> float: ...


def boot_id() -> str:
    """Names the kernel instance, so that two processes know whether they share CLOCK_MONOTONIC."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


_monotonic: Final = time.monotonic


class SystemClock:
    """One wall-clock anchor plus the monotonic clock: steps of the wall clock do not show."""

    __slots__ = ("_monotonic", "_wall", "anchor")

    def __init__(self, anchor: ClockReading) -> None:
        self.anchor: Final = anchor
        self._wall: Final = anchor.wall  # read several times a request
        self._monotonic: Final = anchor.monotonic

    @classmethod
    def start(cls) -> "SystemClock":
        """Anchors at this instant."""
        return cls(
            ClockReading(
                wall=time.time(),  # noqa: TID251 - the one place that may
                monotonic=time.monotonic(),
                boot_id=boot_id(),
            )
        )

    def now(self) -> float:
        return self._wall + (_monotonic() - self._monotonic)

    def at(self, monotonic: float) -> float:
        """Unix seconds of an instant of CLOCK_MONOTONIC."""
        return self._wall + (monotonic - self._monotonic)

    def reading(self) -> ClockReading:
        """Both clocks at one instant, to send to another process."""
        monotonic = time.monotonic()
        return ClockReading(
            wall=self.at(monotonic), monotonic=monotonic, boot_id=self.anchor.boot_id
        )


def follow(
    remote: ClockReading, *, sent: ClockReading, received: ClockReading
) -> tuple[SystemClock, float]:
    """A clock that reckons as the remote does, and how far it may be off in seconds.

    `sent` and `received` are our own readings around the exchange that fetched `remote`. Where
    both share CLOCK_MONOTONIC the answer is exact; otherwise half the round trip bounds the
    error (RFC 5905, section 8). One kernel may show two of these clocks (time_namespaces(7)), but
    one that is shared was read within the exchange.
    """
    is_one_kernel = remote.boot_id == received.boot_id and remote.boot_id != "unknown"
    if is_one_kernel and sent.monotonic <= remote.monotonic <= received.monotonic:
        return SystemClock(remote), 0.0
    half_trip = (received.monotonic - sent.monotonic) / 2
    anchor = ClockReading(
        wall=remote.wall, monotonic=sent.monotonic + half_trip, boot_id=received.boot_id
    )
    return SystemClock(anchor), half_trip
