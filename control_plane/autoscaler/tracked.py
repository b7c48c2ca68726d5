"""What the autoscaler remembers of one revision between two decisions."""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from control_plane.autoscaler.backlog import service_time_s, wanted_concurrency
from control_plane.autoscaler.decider import NOISE
from control_plane.autoscaler.decision import Decision, Observed, Panic, Tuning
from control_plane.autoscaler.demand import Demand, IdleTime
from control_plane.autoscaler.experience import Experience
from control_plane.autoscaler.horizon import Band
from control_plane.autoscaler.window import Windows
from control_plane.fleet.replica import Replica
from infra.contracts.base import RevisionName
from infra.contracts.explanation import KeepAliveStatus
from infra.contracts.model_spec import ModelSpec, Scaling
from infra.contracts.revision import ReplicaState, Revision
from infra.schedule import Floor, floor_at

_REMEMBERED = 64
_UNKNOWN = Floor(until=-math.inf)
_LEAD_MARGIN_S = 2.0  # a decision may come a tick late


class DecisionRecord(NamedTuple):
    """A decision that changed the number of replicas, with all that it looked at."""

    at: float
    revision: RevisionName
    observed: Observed
    decision: Decision


class Tracked:
    """Owned by the autoscaler."""

    __slots__ = (
        "_executed",
        "_floor",
        "_heard_of",
        "_learnt",
        "_warm",
        "band",
        "changed_at",
        "decided",
        "experience",
        "is_deleted",
        "is_looked_after",
        "is_superseded",
        "name",
        "panic",
        "place",
        "ready_at",
        "records",
        "revision",
        "scaling",
        "target_concurrency",
        "warm_until",
        "windows",
    )

    def __init__(
        self,
        revision: Revision,
        *,
        place: int,
        tuning: Tuning,
        experience: Experience,
        learnt: Callable[[Experience], None],
    ) -> None:
        self.revision = revision
        self.name = revision.name
        self.scaling = _attainable(revision.spec)
        self.target_concurrency = self.scaling.target_concurrency
        self.place = place  # decisions about several revisions are made in this order
        self.experience = experience
        self._learnt = learnt
        self.windows = Windows(tuning.stable_s, tuning.panic_s)
        self.panic: Panic | None = None
        self.band: Band | None = None
        self.records: deque[DecisionRecord] = deque(maxlen=_REMEMBERED)
        self.decided: int | None = None  # replicas, the last time
        self.ready_at: float | None = None
        self.changed_at = -math.inf  # when something about it was last seen to have changed
        self.is_looked_after = False  # its demand is known, and looked at when it changes
        self.is_superseded = False
        self.is_deleted = False
        self._executed = 0  # requests that had left at the last look
        self._heard_of: IdleTime | None = None  # and the idle time
        self._floor = _UNKNOWN
        self._warm = 0
        self.warm_until = -math.inf

    def heed(self, demand: Demand | None, *, now: float, quiet_until: float | None = None) -> None:
        """Takes a reading of the demand and learns from it.

        `quiet_until`: the last time when somebody would have looked, had there been a change. What
        happens while the demand is not known is not told.
        """
        carried_to = quiet_until if self.is_looked_after else None
        if demand is None or not demand.is_finite:
            self.windows.carry(carried_to)
            self.is_looked_after = False
            return
        self.windows.record(demand, now=now, quiet_until=carried_to)
        if demand.idled is not None and demand.idled is not self._heard_of:
            self._heard_of = demand.idled
            if self.experience.learn_idle_time(
                demand.idled, ready_at=self.ready_at, cold_penalty_s=self.scaling.cold_penalty
            ):
                self._note()

    def restart(self, demand: Demand, *, now: float) -> None:
        """A revision that wakes is not judged by its sleep."""
        self.windows.restart(demand, now=now)

    def stable_mean(self, demand: Demand, *, now: float) -> float:
        """Requests at once to size for, over the stable window; learns how long they take."""
        experience, load = self.experience, self.windows.long(now=now)
        likely_s = experience.likely_service_s
        service_s = service_time_s(load, demand, known_s=likely_s)
        if demand.executed != self._executed:  # one has left, and all of it is in the window
            self._executed = demand.executed
            experience.learn_service_time(service_s)
        elif load is None or load.executed >= 1:  # what of it is in the window tells nothing new
            service_s = likely_s
        elif service_s > likely_s:
            experience.learn_service_time(service_s)
        return wanted_concurrency(load, demand, service_s, experience.cold_start_s)

    def panic_mean(self, demand: Demand, *, now: float) -> float:
        """The same over the panic window; how long a request takes is as the stable one has it."""
        load, service_s = self.windows.short(now=now), self.experience.likely_service_s
        return wanted_concurrency(load, demand, service_s, self.experience.cold_start_s)

    def stays(self, demand: Demand, *, now: float) -> bool:
        """Whether the last decision is certain to be made again under this demand."""
        band, target = self.band, self.target_concurrency
        if band is None or now >= band.until or demand.concurrency == 0:
            return False
        if not band.low < self.stable_mean(demand, now=now) / target - NOISE <= band.high:
            return False
        # no more is wanted than there is at once, which is the quicker to know
        return (
            self.windows.is_short_within(band.burst * target, now=now)
            or self.panic_mean(demand, now=now) / target - NOISE <= band.burst
        )

    def grace_s(self) -> float:
        """How long the last replica is kept idle."""
        grace_s = self.scaling.grace
        return self.experience.grace_s(self.scaling.cold_penalty) if grace_s is None else grace_s

    def keep_alive(self) -> KeepAliveStatus:
        """What the grace is and what it is computed from."""
        scaling = self.scaling
        return KeepAliveStatus(
            grace_s=self.grace_s(),
            is_automatic=scaling.grace is None,
            cold_start_s=self.experience.cold_start_s,
            cold_penalty_s=scaling.cold_penalty,
            idle_times=len(self.experience.keep_alive.idle_times),
            saved_s=min(
                self.experience.keep_alive.saved_s,
                self.experience.cold_cost_s(scaling.cold_penalty),
            ),
        )

    def scheduled(self, *, now: float) -> int:
        """Replicas that the schedule keeps now, or wants to be ready soon."""
        schedule = self.scaling.schedule
        if not schedule:
            return 0
        if now >= self._floor.until:
            lead_s = self.experience.lead_s + _LEAD_MARGIN_S
            self._floor = floor_at(schedule, now=now, lead_s=lead_s)
        return self._floor.replicas

    def keep_warm(self, replicas: int, *, until: float) -> None:
        """So many replicas are wanted for requests that are about to come."""
        self._warm, self.warm_until = min(replicas, self.scaling.max), until

    def warm(self, *, now: float) -> int:
        """Replicas that are kept for requests to come."""
        return self._warm if now < self.warm_until else 0

    def is_left(self, *, now: float) -> bool:
        """Requests go elsewhere, and none is about to come."""
        return self.is_superseded and not self.warm(now=now)

    @property
    def scheduled_until(self) -> float:
        """When the schedule may keep another number."""
        return self._floor.until if self.scaling.schedule else math.inf

    def idle_since(self, demand: Demand | None) -> float | None:
        """When the grace began: the last request's end, or the last replica's start if later."""
        last_active_at = None if demand is None else demand.last_active_at
        if self.ready_at is None or last_active_at is None:
            return last_active_at if self.ready_at is None else self.ready_at
        return max(self.ready_at, last_active_at)

    def step_back(self, *, now: float, calm_s: float) -> None:
        """The clock stepped back to `now`: what was noted of later than that was of now."""
        self.changed_at = now
        self._floor = _UNKNOWN
        if self.ready_at is not None:
            self.ready_at = min(self.ready_at, now)
        if self.panic is not None:
            self.panic = Panic(min(self.panic.until, now + calm_s), self.panic.peak)

    def replica_changed(self, before: Replica | None, after: Replica, *, calm_s: float) -> None:
        """A replica got ready. One that ran before us says that the demand was there and that we
        have not seen it: nothing shrinks for `calm_s` (as a Knative that starts is in panic)."""
        if after.state is not ReplicaState.READY or before is None or before.state is after.state:
            return
        self.ready_at = max(self.ready_at or 0.0, after.since)
        if after.is_adopted:
            peak = 1 if self.panic is None else self.panic.peak + 1
            self.panic = Panic(after.since + calm_s, peak)
        else:
            self.experience.learn_climb(
                after.since - after.created_at, wait_s=after.since - after.wanted_at
            )
            self._note()
            self._floor = _UNKNOWN  # what is scheduled may begin earlier now

    def _note(self) -> None:
        """What a deleted model's last requests teach is of no use: nothing of it is kept."""
        if not self.is_deleted:
            self._learnt(self.experience)

    def remember(self, record: DecisionRecord) -> None:
        """Keeps a decision, which is another than the last one."""
        self.decided = record.decision.replicas
        self.records.append(record)


def _attainable(spec: ModelSpec) -> Scaling:
    """No replica carries more at once than it takes."""
    most = spec.limits.max_concurrency
    if spec.scaling.target_concurrency <= most:
        return spec.scaling
    return spec.scaling.model_copy(update={"target_concurrency": float(most)})
