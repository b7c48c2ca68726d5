"""The node's clock: its own until it has met the control plane, then the control plane's."""

from infra.clock import SystemClock, follow
from infra.contracts.node import ClockReading

DRIFT = (
    100e-6  # seconds a second: what two machines' quartz may stray from each other undisciplined
)


class NodeClock:
    """Unix seconds as the control plane reckons them, off by `uncertainty_s` at most."""

    def __init__(self) -> None:
        self._clock = SystemClock.start()
        self._is_shared = True
        self._half_trip_s = 0.0
        self._compared_at = 0.0  # by our CLOCK_MONOTONIC

    @property
    def uncertainty_s(self) -> float:
        """Half the round trip of the comparison that counts, and what the clocks strayed since."""
        if self._is_shared:
            return 0.0
        return self._half_trip_s + DRIFT * (self.reading().monotonic - self._compared_at)

    def now(self) -> float:
        return self._clock.now()

    def reading(self) -> ClockReading:
        return self._clock.reading()

    def follow(self, remote: ClockReading, *, sent: ClockReading, received: ClockReading) -> None:
        """Reckons as the remote does from now on; see infra.clock.follow."""
        self._clock, self._half_trip_s = follow(remote, sent=sent, received=received)
        self._is_shared = self._half_trip_s == 0
        self._compared_at = received.monotonic

    def compare(self, remote: ClockReading, *, sent: ClockReading, received: ClockReading) -> None:
        """Follows the same remote more closely, where this exchange says more than those before."""
        if self._is_shared:
            return
        _, half_trip_s = follow(remote, sent=sent, received=received)
        if half_trip_s < self.uncertainty_s:
            self.follow(remote, sent=sent, received=received)
