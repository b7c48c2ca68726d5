"""What the autoscaler remembers of one revision between two decisions."""

import math
from collections import deque
from dataclasses import dataclass

from control_plane.autoscaler.backlog import service_time_s, wanted_concurrency
from control_plane.autoscaler.decider import Decision, Observed, Panic
from control_plane.autoscaler.demand import Demand
from control_plane.autoscaler.experience import Experience
from control_plane.autoscaler.window import Window
from control_plane.fleet.replica import Replica
from infra.contracts.base import RevisionName
from infra.contracts.explanation import KeepAliveStatus
from infra.contracts.revision import ReplicaState, Revision
from infra.schedule import Floor, floor_at

_REMEMBERED = 64
_UNKNOWN = Floor(until=-math.inf)
_LEAD_MARGIN_S = 2.0  # a decision may come a tick late


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision that changed the number of replicas, with all that it looked at."""

    at: float
    revision: RevisionName
    observed: Observed
    decision: Decision


class Tracked:
    """Owned by the autoscaler."""

    def __init__(self, revision: Revision, *, span_s: float, experience: Experience) -> None:
        self.revision = revision
        self.experience = experience
        self.window = Window(span_s)
        self.panic: Panic | None = None
        self.records: deque[DecisionRecord] = deque(maxlen=_REMEMBERED)
        self.latest: DecisionRecord | None = None
        self.ready_at: float | None = None
        self.is_superseded = False
        self.is_deleted = False
        self._floor = _UNKNOWN

    @property
    def name(self) -> RevisionName:
        return self.revision.name

    def heed(self, demand: Demand, *, now: float) -> None:
        """Takes a reading of the demand and learns from it."""
        self.window.record(demand, now=now)
        if demand.idled is not None:
            self.experience.learn_idle_time(
                demand.idled,
                ready_at=self.ready_at,
                cold_penalty_s=self.revision.spec.scaling.cold_penalty,
            )

    def mean(self, demand: Demand | None, span_s: float, *, now: float) -> float | None:
        """Requests at once to size for, over the last seconds."""
        if demand is None:
            return None
        load = self.window.load(span_s, now=now)
        service_s = self.experience.service_s = service_time_s(
            load, demand, known_s=self.experience.service_s
        )
        cold_start_s = self.experience.cold_start_s
        return wanted_concurrency(load, demand, service_s=service_s, cold_start_s=cold_start_s)

    def grace_s(self) -> float:
        """How long the last replica is kept idle."""
        scaling = self.revision.spec.scaling
        if scaling.grace is not None:
            return scaling.grace
        return self.experience.grace_s(scaling.cold_penalty)

    def keep_alive(self) -> KeepAliveStatus:
        """What the grace is and what it is computed from."""
        scaling = self.revision.spec.scaling
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
        schedule = self.revision.spec.scaling.schedule
        if not schedule:
            return 0
        if now >= self._floor.until:
            lead_s = self.experience.lead_s + _LEAD_MARGIN_S
            self._floor = floor_at(schedule, now=now, lead_s=lead_s)
        return self._floor.replicas

    def idle_since(self, demand: Demand | None) -> float | None:
        """When the grace began: the last request's end, or the last replica's start if later."""
        last_active_at = None if demand is None else demand.last_active_at
        if self.ready_at is None or last_active_at is None:
            return last_active_at if self.ready_at is None else self.ready_at
        return max(self.ready_at, last_active_at)

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
            self._floor = _UNKNOWN  # what is scheduled may begin earlier now

    def remember(self, record: DecisionRecord) -> bool:
        """Keeps a decision; whether it changed the number of replicas."""
        before, self.latest = self.latest, record
        if before is not None and before.decision.replicas == record.decision.replicas:
            return False
        self.records.append(record)
        return True
