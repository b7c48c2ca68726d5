"""The node's clock: its own until it has met the control plane, then the control plane's."""

from infra.clock import SystemClock, follow
from infra.contracts.node import ClockReading


class NodeClock:
    """Unix seconds as the control plane reckons them, off by `uncertainty_s` at most."""

    def __init__(self) -> None:
        self._clock = SystemClock.start()
        self.uncertainty_s = 0.0

    def now(self) -> float:
        return self._clock.now()

    def reading(self) -> ClockReading:
        return self._clock.reading()

    def follow(self, remote: ClockReading, *, sent: ClockReading, received: ClockReading) -> None:
        """Reckons as the remote does from now on; see infra.clock.follow."""
        self._clock, self.uncertainty_s = follow(remote, sent=sent, received=received)
