"""What a model's past says of its future: idle times, cold starts, how long a request takes."""

from collections import deque
from collections.abc import Iterable
from statistics import median

from control_plane.autoscaler.demand import SHORTEST_IDLE_S, IdleTime
from control_plane.autoscaler.keep_alive import KeepAlive

ASSUMED_COLD_START_S = 10.0  # before the first one was measured
# Before any model's requests were measured: 211 tokens, as in the Azure conversations, at 20 ms.
ASSUMED_SERVICE_S = 4.0
REMEMBERED = 5  # cold starts; of so many the median follows a change after three


class Experience:
    """Learns from what happens to one revision; its successor begins with a copy."""

    __slots__ = (
        "_climbs",
        "_is_measured",
        "_service_s",
        "_settled",
        "_waits",
        "assumed_service_s",
        "cold_start_s",
        "keep_alive",
    )

    def __init__(
        self,
        keep_alive: KeepAlive | None = None,
        *,
        climbs: Iterable[float] = (),
        waits: Iterable[float] = (),
        service_s: float | None = None,
        assumed_service_s: float = ASSUMED_SERVICE_S,
    ) -> None:
        self.keep_alive = KeepAlive() if keep_alive is None else keep_alive
        # Two fields: a number that may be None is an object, and a tick would wait for each.
        self._is_measured = service_s is not None
        self._service_s = 0.0 if service_s is None else service_s
        self.assumed_service_s = assumed_service_s
        self._climbs = deque(climbs, maxlen=REMEMBERED)
        self._waits = deque(waits, maxlen=REMEMBERED)
        # machine time of a typical cold start: a place on a node is taken and serves nobody
        self.cold_start_s = self._typical_climb_s()
        self._settled: IdleTime | None = None

    @property
    def climbs(self) -> tuple[float, ...]:
        """Machine time of the last cold starts, oldest first."""
        return tuple(self._climbs)

    @property
    def waits(self) -> tuple[float, ...]:
        """How long they took from the wish for a replica on."""
        return tuple(self._waits)

    @property
    def lead_s(self) -> float:
        """How long ahead a replica has to be wanted to be ready in time, as a rule."""
        return max(self._waits, default=ASSUMED_COLD_START_S)

    def copy(self) -> "Experience":
        """What a new revision of the same model may expect."""
        keep_alive = KeepAlive(self.keep_alive.idle_times, saved_s=self.keep_alive.saved_s)
        return Experience(
            keep_alive,
            climbs=self._climbs,
            waits=self._waits,
            service_s=self.service_s,
            assumed_service_s=self.assumed_service_s,
        )

    @property
    def service_s(self) -> float | None:
        """How long a request takes; None before one was ever finished."""
        return self._service_s if self._is_measured else None

    @property
    def likely_service_s(self) -> float:
        """How long a request takes, as measured, or as others do that were."""
        return self._service_s if self._is_measured else self.assumed_service_s

    def learn_service_time(self, service_s: float) -> None:
        """Requests take so long by now."""
        self._service_s, self._is_measured = service_s, True

    def learn_climb(self, climb_s: float, *, wait_s: float) -> None:
        """A replica got ready: `climb_s` after its node was told, `wait_s` after it was wanted."""
        self._climbs.append(climb_s)
        self._waits.append(wait_s)
        self.cold_start_s = self._typical_climb_s()

    def grace_s(self, cold_penalty_s: float) -> float:
        """How long an idle replica is kept; shorter than what counts as idle makes no sense."""
        return max(SHORTEST_IDLE_S, self.keep_alive.grace_s(self.cold_cost_s(cold_penalty_s)))

    def cold_cost_s(self, cold_penalty_s: float) -> float:
        """What a cold start costs, in idle seconds."""
        return self.cold_start_s + cold_penalty_s

    def learn_idle_time(
        self, idled: IdleTime, *, ready_at: float | None, cold_penalty_s: float
    ) -> bool:
        """An idle time is over; whether that was news. A replica idles from when it is ready."""
        if idled is self._settled or idled == self._settled:
            return False
        self._settled = idled
        began_at = idled.began_at
        if ready_at is not None and ready_at < idled.ended_at:
            began_at = max(began_at, ready_at)
        if (idle_s := idled.ended_at - began_at) < SHORTEST_IDLE_S:
            return False
        self.keep_alive.settle(
            idle_s,
            grace_s=self.grace_s(cold_penalty_s),
            cold_cost_s=self.cold_cost_s(cold_penalty_s),
        )
        return True

    def _typical_climb_s(self) -> float:
        return median(self._climbs) if self._climbs else ASSUMED_COLD_START_S
