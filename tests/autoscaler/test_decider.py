import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.autoscaler.decider import decide
from control_plane.autoscaler.decision import Decision, Observed, Panic
from control_plane.autoscaler.demand import Demand
from infra.contracts.model_spec import Scaling

NOW = 1000.0
QUIET = Demand(in_flight=0, waiting=0, last_active_at=None, request_seconds=0.0)


def a_load(in_flight: int = 0, waiting: int = 0) -> Demand:
    return Demand(in_flight, waiting, last_active_at=NOW, request_seconds=0.0)


def said(decision: Decision) -> tuple[int, str]:
    assert decision.panic is None
    return decision.replicas, decision.reason


def observed(**changes: Any) -> Observed:
    facts: dict[str, Any] = {"desired": 1, "ready": 1, "loading": 0, "demand": QUIET}
    return Observed(**(facts | changes))


def test_one_waiting_request_at_zero_wants_one_replica():
    decision = decide(Scaling(), observed(desired=0, ready=0, demand=a_load(waiting=1)), now=NOW)
    assert said(decision) == (1, "1 waiting, 8 a replica")


def test_a_crowd_at_zero_wants_many_at_most_the_maximum():
    scaling = Scaling(max=5, target_concurrency=8)
    decision = decide(scaling, observed(desired=0, ready=0, demand=a_load(waiting=500)), now=NOW)
    assert decision.replicas == 5
    assert decision.reason.endswith("maximum 5")


@pytest.mark.parametrize(
    ("idle_s", "grace", "replicas"), [(0, 60, 1), (59.9, 60, 1), (60, 60, 0), (0, 0, 0)]
)
def test_the_last_replica_goes_after_its_grace(idle_s: float, grace: float, replicas: int):
    decision = decide(Scaling(), observed(idle_since=NOW - idle_s, grace_s=grace), now=NOW)
    assert decision.replicas == replicas


def test_all_replicas_go_once_the_grace_is_over_however_many_they_are():
    idle = observed(desired=9, ready=9, idle_since=NOW - 5, grace_s=5, stable_mean=40.0)
    assert decide(Scaling(max=10), idle, now=NOW).replicas == 0


def test_a_minimum_outlasts_every_grace():
    idle = observed(idle_since=NOW - 1e6)
    assert decide(Scaling(min=1), idle, now=NOW).replicas == 1


def test_nothing_shrinks_while_a_replica_loads():
    decision = decide(
        Scaling(max=4), observed(desired=3, ready=1, loading=2, idle_since=NOW - 1e6), now=NOW
    )
    assert decision.replicas == 3


def test_a_superseded_revision_that_loads_for_nobody_goes():
    nobody = observed(desired=1, ready=0, loading=1, is_superseded=True)
    assert decide(Scaling(min=1), nobody, now=NOW).replicas == 0
    somebody = observed(desired=1, ready=0, loading=1, is_superseded=True, demand=a_load(waiting=1))
    assert decide(Scaling(), somebody, now=NOW).replicas == 1


def test_room_that_others_wait_for_is_given_up_without_grace():
    idle = observed(idle_since=NOW - 1, grace_s=60, is_contended=True)
    assert decide(Scaling(), idle, now=NOW).replicas == 0


@pytest.mark.parametrize("demand", [None, Demand(0, 0, None, math.nan), Demand(0, 0, 0, math.inf)])
def test_what_is_not_known_changes_nothing(demand: Demand | None):
    facts = observed(desired=3, ready=3, demand=demand, idle_since=0.0)
    assert decide(Scaling(max=5), facts, now=NOW).replicas == 3
    assert decide(Scaling(min=2, max=5), observed(desired=0, demand=demand), now=NOW).replicas == 2


def test_means_that_are_not_numbers_fall_back_to_the_present_load():
    facts = observed(demand=a_load(in_flight=20), stable_mean=math.nan, panic_mean=math.inf)
    assert decide(Scaling(max=9, target_concurrency=8), facts, now=NOW).replicas == 3


def test_the_stable_window_sizes_a_steady_load():
    facts = observed(
        desired=2, ready=2, demand=a_load(in_flight=3), stable_mean=17.0, panic_mean=17.0
    )
    decision = decide(Scaling(max=9, target_concurrency=8), facts, now=NOW)
    assert said(decision) == (3, "17.0 at once, 8 a replica")


def test_no_replica_is_spared_that_serves():
    """However little the windows make of requests that take longer than any did before."""
    few = {"desired": 3, "ready": 3, "stable_mean": 1.2, "panic_mean": 0.5}
    scaling = Scaling(max=3, target_concurrency=1)
    kept = decide(scaling, observed(demand=a_load(in_flight=3), **few), now=0)
    assert (kept.replicas, kept.reason) == (3, "1.2 at once, 1 a replica, and 3 in flight")
    assert decide(scaling, observed(demand=a_load(in_flight=1), **few), now=0).replicas == 2


def test_a_burst_is_panic_and_panic_never_shrinks():
    scaling = Scaling(max=20, target_concurrency=1)
    burst = observed(
        desired=2, ready=2, demand=a_load(in_flight=9), stable_mean=2.0, panic_mean=8.0
    )
    first = decide(scaling, burst, now=NOW)
    assert first.replicas == 8 and first.panic == Panic(until=NOW + 60, peak=8)
    calm = observed(
        desired=8,
        ready=8,
        demand=a_load(in_flight=1),
        stable_mean=1.0,
        panic_mean=1.0,
        panic=first.panic,
    )
    assert decide(scaling, calm, now=NOW + 59).replicas == 8
    assert decide(scaling, calm, now=NOW + 60).replicas == 4  # halved at most
    quiet = observed(desired=8, ready=8, panic=first.panic, idle_since=NOW + 30, grace_s=60)
    assert decide(scaling, quiet, now=NOW + 59).replicas == 8


def test_a_burst_that_replicas_on_their_way_will_carry_is_no_panic():
    facts = observed(
        desired=4, ready=0, loading=4, demand=a_load(waiting=30), stable_mean=30.0, panic_mean=30.0
    )
    decision = decide(Scaling(max=9, target_concurrency=8), facts, now=NOW)
    assert said(decision) == (4, "30.0 at once, 8 a replica")


def test_what_is_scheduled_is_kept_like_a_minimum():
    scaling = Scaling(max=4)
    asleep = decide(scaling, observed(desired=0, ready=0, scheduled=3), now=NOW)
    assert said(asleep) == (3, "the schedule keeps 3")
    idle = observed(desired=3, ready=3, scheduled=2, idle_since=NOW - 1e6)
    rests = decide(scaling, idle, now=NOW)
    assert said(rests) == (2, "idle for 1000000 s; the schedule keeps 2")
    too_many = observed(desired=0, ready=0, scheduled=9)
    assert decide(scaling, too_many, now=NOW).replicas == 4
    superseded = observed(scheduled=2, is_superseded=True)
    assert decide(scaling, superseded, now=NOW).replicas == 0


@given(
    scaling=st.builds(
        lambda low, more, target: Scaling(
            min=low, max=max(1, low + more), target_concurrency=target
        ),
        st.integers(0, 5),
        st.integers(0, 50),
        st.floats(0.1, 100),
    ),
    facts=st.builds(
        Observed,
        desired=st.integers(0, 60),
        ready=st.integers(0, 60),
        loading=st.integers(0, 5),
        demand=st.none()
        | st.builds(Demand, st.integers(0, 99), st.integers(0, 999), st.none(), st.floats()),
        stable_mean=st.none() | st.floats(),
        panic_mean=st.none() | st.floats(),
        idle_since=st.none() | st.floats(0, 2000),
        grace_s=st.floats(0, 1000),
        scheduled=st.integers(0, 60),
        panic=st.none() | st.builds(Panic, st.floats(0, 2000), st.integers(0, 60)),
        is_contended=st.booleans(),
        is_superseded=st.booleans(),
    ),
)
def test_every_decision_keeps_the_bounds(scaling: Scaling, facts: Observed):
    decision = decide(scaling, facts, now=NOW)
    least = 0 if facts.is_superseded else max(scaling.min, min(facts.scheduled, scaling.max))
    assert least <= decision.replicas <= scaling.max
    assert decision.reason
    is_asked_for = facts.demand is not None and facts.demand.concurrency > 0
    if is_asked_for and math.isfinite(facts.demand.request_seconds):  # type: ignore[union-attr]
        assert decision.replicas >= 1
