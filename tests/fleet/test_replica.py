from dataclasses import replace
from typing import Any

import pytest

from control_plane.fleet.replica import MOVES, Endpoint, IllegalMove, Replica
from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.node import Failure, ReplicaReport
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung, Stage, StageProgress, StageTiming
from tests.fleet.makers import a_revision, a_source

ASSIGNED, STARTING, READY = ReplicaState.ASSIGNED, ReplicaState.STARTING, ReplicaState.READY
DRAINING, STOPPED, FAILED = ReplicaState.DRAINING, ReplicaState.STOPPED, ReplicaState.FAILED
LOST = ReplicaState.LOST


def a_replica(**changes: Any) -> Replica:
    replica = Replica(
        replica_id=ReplicaId("chat-1-a"),
        revision=a_revision(),
        node_id=NodeId("n1"),
        token="secret",
        wanted_at=10.0,
        created_at=10.5,
        since=10.5,
    )
    return replace(replica, **changes)


def a_report(state: ReplicaState, **changes: Any) -> ReplicaReport:
    facts: dict[str, Any] = {
        "replica_id": "chat-1-a",
        "revision": "chat@1",
        "state": state,
        "from_rung": Rung.RUNTIME,
    }
    return ReplicaReport.model_validate(facts | changes)


def a_ready_report() -> ReplicaReport:
    return a_report(READY, host="10.0.0.1", port=8000)


def timing(stage: Stage, started_at: float, seconds: float) -> StageTiming:
    return StageTiming(stage=stage, started_at=started_at, seconds=seconds)


@pytest.mark.parametrize("state", list(ReplicaState))
def test_only_the_tables_moves_are_made(state: ReplicaState):
    for target in ReplicaState:
        if target in MOVES[state]:
            assert a_replica(state=state).to(target, now=11).state is target
        else:
            with pytest.raises(IllegalMove):
                a_replica(state=state).to(target, now=11)


def test_every_state_can_end_and_an_end_is_final():
    for state in ReplicaState:
        is_over = a_replica(state=state).is_over
        assert bool(MOVES[state]) is not is_over
        assert is_over or {STOPPED, FAILED, LOST} <= MOVES[state]


def test_a_replica_is_reached_only_while_ready():
    assert a_replica().endpoint() is None
    ready = a_replica().heard(a_ready_report(), now=11)
    assert ready.endpoint() == Endpoint(
        ReplicaId("chat-1-a"), NodeId("n1"), a_revision().name, "10.0.0.1", 8000, "secret", 32
    )
    assert ready.to(DRAINING, now=12).endpoint() is None


def test_ready_without_an_address_is_not_ready():
    assert a_replica().heard(a_report(READY), now=11).state is ASSIGNED


@pytest.mark.parametrize("state", [STARTING, READY])
def test_late_news_never_moves_a_replica_back(state: ReplicaState):
    draining = a_replica().heard(a_ready_report(), now=11).to(DRAINING, now=12)
    report = a_report(state, host="10.0.0.1", port=8000)
    assert draining.heard(report, now=13).state is DRAINING


@pytest.mark.parametrize("end", [STOPPED, FAILED, LOST])
def test_nothing_changes_after_the_end(end: ReplicaState):
    ended = a_replica().to(end, now=11)
    assert ended.heard(a_ready_report(), now=12) is ended


def test_a_repeated_report_changes_nothing():
    once = a_replica().heard(a_ready_report(), now=11)
    assert once.heard(a_ready_report(), now=11) == once


def test_a_failure_carries_its_words():
    failure = Failure(code="replica-failed", detail="out of memory", is_permanent=False)
    failed = a_replica().heard(a_report(FAILED, failure=failure), now=11)
    assert (failed.state, failed.detail, failed.failure) == (FAILED, "out of memory", failure)


def test_progress_is_noticed_and_its_absence_too():
    half = StageProgress(stage=Stage.WEIGHTS, fraction=0.5)
    first = a_replica().heard(a_report(STARTING, progress=half), now=11)
    same = first.heard(a_report(STARTING, progress=half), now=20)
    assert same.progressed_at == 11


def test_provision_runs_from_the_wish_to_the_nodes_first_act():
    stages = (timing(Stage.RUNTIME, 11.0, 0.5), timing(Stage.WEIGHTS, 11.5, 2.0))
    replica = a_replica().heard(a_report(STARTING, stages=stages), now=14)
    provision = StageTiming(stage=Stage.PROVISION, started_at=10.0, seconds=1.0, source="node")
    assert replica.timings() == (provision, *stages)


def test_a_climb_cut_short_leaves_all_its_time_to_its_successor():
    stages = (timing(Stage.RUNTIME, 11.0, 0.5),)
    half = StageProgress(stage=Stage.WEIGHTS, fraction=0.5)
    loading = a_replica().heard(a_report(STARTING, stages=stages, progress=half), now=12)
    legacy = loading.to(LOST, now=13).legacy()
    assert [(it.stage, it.started_at, it.seconds) for it in legacy] == [
        (Stage.PROVISION, 10.0, 1.0),
        (Stage.RUNTIME, 11.0, 0.5),
        (Stage.WEIGHTS, 11.5, 1.5),
    ]


def test_a_node_is_told_to_run_or_to_drain():
    assert a_replica().assignment().desired == "run"
    draft = a_source("sha256:11")
    revision = a_revision().model_copy(update={"draft_source": draft})
    assert replace(a_replica(), revision=revision).assignment().draft_source == draft
    ready = a_replica().heard(a_ready_report(), now=11)
    assert ready.to(DRAINING, now=12).assignment().desired == "drain"
