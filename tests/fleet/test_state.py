import random
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from control_plane.fleet.need import need_of
from control_plane.fleet.node import Node, Standby
from control_plane.fleet.replica import Climb, Replica
from control_plane.fleet.state import Fleet
from infra.contracts.base import NodeId, ReplicaId, RevisionName
from infra.contracts.node import NodeReport, SleepTerms
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage, StageProgress
from tests.fleet.makers import GIB, N1, a_registration, a_sleeper
from tests.fleet.test_replica import a_ready_report, a_replica, a_report

CHAT1 = RevisionName("chat@1")
A, B = ReplicaId("chat-1-a"), ReplicaId("chat-1-b")
ASSIGNED, STARTING, READY = ReplicaState.ASSIGNED, ReplicaState.STARTING, ReplicaState.READY
DRAINING, STOPPED, LOST = ReplicaState.DRAINING, ReplicaState.STOPPED, ReplicaState.LOST


def a_node(name: str = "n1") -> Node:
    return Node.registered(a_registration(name), version=100, lease_s=10, now=0)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    fleet.join(a_node())
    yield fleet
    fleet.check_integrity()


def version(fleet: Fleet) -> int:
    return fleet.desired_state(N1).version


def test_only_what_a_node_must_do_grows_its_version(fleet: Fleet):
    fleet.assign(a_replica())
    assert version(fleet) == 101
    fleet.hear(N1, a_report(STARTING), now=11)
    fleet.hear(N1, a_ready_report(), now=12)
    assert version(fleet) == 101
    fleet.drain(A, deadline_s=7, now=13, detail="idle")
    assert version(fleet) == 102
    state = fleet.desired_state(N1)
    assert [(it.desired, it.drain_deadline_s) for it in state.replicas] == [("drain", 7)]
    fleet.hear(N1, a_report(STOPPED), now=14)
    assert version(fleet) == 103
    assert fleet.desired_state(N1).replicas == ()
    fleet.set_standby(N1, Standby(2))
    fleet.set_standby(N1, Standby(2))
    assert version(fleet) == 104


def test_a_node_is_told_what_memory_its_replicas_leave_to_sleepers(fleet: Fleet):
    terms = SleepTerms(revisions=(CHAT1,), most=2, memory_bytes=16 * GIB)
    fleet.set_standby(N1, Standby(sleep=terms))
    assert fleet.desired_state(N1).sleep == terms

    fleet.assign(a_replica())

    need = need_of(a_replica().revision).memory_bytes
    assert fleet.desired_state(N1).sleep == terms.model_copy(
        update={"memory_bytes": 16 * GIB - need}
    )
    assert fleet.desired_state(N1).replicas[0].sleep_s == 600


def test_who_sleeps_is_what_nodes_said_last(fleet: Fleet):
    fleet.observe(NodeReport(node_id=N1, standby_ready=0, sleepers=(a_sleeper("chat@1"),)))
    assert (fleet.sleepers(CHAT1), fleet.sleepers(RevisionName("chat@2"))) == (1, 0)
    fleet.observe(NodeReport(node_id=N1, standby_ready=0))
    assert fleet.sleepers(CHAT1) == 0


def test_ready_follows_every_move(fleet: Fleet):
    fleet.assign(a_replica())
    fleet.assign(a_replica(replica_id=B))
    assert fleet.ready(CHAT1) == ()
    fleet.hear(N1, a_ready_report(), now=12)
    assert [it.replica_id for it in fleet.ready(CHAT1)] == [A]
    fleet.hear(N1, a_report(READY, replica_id=B, host="h", port=2), now=12)
    assert [it.replica_id for it in fleet.ready(CHAT1)] == [A, B]
    fleet.drain(A, deadline_s=1, now=13, detail="")
    fleet.end(B, LOST, now=14, detail="gone")
    assert fleet.ready(CHAT1) == ()


def test_the_furthest_climb_is_the_one_that_counts(fleet: Fleet):
    assert fleet.climb(CHAT1) is None
    fleet.assign(a_replica())
    assert fleet.climb(CHAT1) == Climb(A, ASSIGNED, None, 1)
    fleet.assign(a_replica(replica_id=B))
    half = StageProgress(stage=Stage.WEIGHTS, fraction=0.5)
    fleet.hear(N1, a_report(STARTING, replica_id=B, progress=half), now=11)
    engine = StageProgress(stage=Stage.RUNTIME, fraction=0.9)
    fleet.hear(N1, a_report(STARTING, progress=engine), now=11)
    assert fleet.climb(CHAT1) == Climb(B, STARTING, half, 2)


def test_a_node_that_leaves_takes_its_replicas_along(fleet: Fleet):
    fleet.assign(a_replica())
    fleet.leave(N1, now=20, detail="silent")
    fleet.leave(N1, now=21, detail="silent")
    lost = fleet.replica(A)
    assert lost is not None and (lost.state, lost.since, lost.detail) == (LOST, 20, "silent")
    assert fleet.replicas() == fleet.nodes() == ()


def test_who_hears_that_a_node_left_finds_none_of_its_replicas(fleet: Fleet):
    fleet.assign(a_replica())
    fleet.assign(a_replica(replica_id=B))
    alive: list[int] = []
    fleet.subscribe(lambda before, after: alive.append(len(fleet.replicas())))

    fleet.leave(N1, now=20, detail="silent")

    assert alive == [0, 0]


def test_news_from_a_node_that_does_not_have_the_replica_is_no_news(fleet: Fleet):
    fleet.join(a_node("n2"))
    fleet.assign(a_replica())
    fleet.hear(NodeId("n2"), a_ready_report(), now=11)
    fleet.hear(N1, a_report(READY, replica_id="other", host="h", port=1), now=11)
    assert fleet.ready(CHAT1) == ()


def test_changes_made_by_listeners_are_heard_in_the_order_they_were_made(fleet: Fleet):
    heard: list[tuple[str, ReplicaState]] = []

    def replace_the_dead(before: Replica | None, after: Replica) -> None:
        if after.state is LOST:
            fleet.assign(a_replica(replica_id=B))

    fleet.subscribe(replace_the_dead)
    fleet.subscribe(lambda _, after: heard.append((after.replica_id, after.state)))
    fleet.assign(a_replica())
    fleet.end(A, LOST, now=11, detail="")
    assert heard == [(A, ASSIGNED), (A, LOST), (B, ASSIGNED)]


def test_one_change_is_announced_when_all_of_it_has_happened(fleet: Fleet):
    seen: list[int] = []
    fleet.subscribe(lambda _before, _after: seen.append(len(fleet.replicas())))
    with fleet.one_change():
        fleet.assign(a_replica())
        fleet.assign(a_replica(replica_id=B))
        assert seen == []
    assert seen == [2, 2]


def test_a_listener_that_fails_harms_nobody_else(fleet: Fleet):
    heard: list[str] = []
    fleet.subscribe(lambda _before, _after: 1 / 0)  # type: ignore[arg-type, return-value]
    fleet.subscribe(lambda _, after: heard.append(after.replica_id))
    with capture_logs() as logs:
        fleet.assign(a_replica())
    assert heard == [A]
    assert [it["event"] for it in logs] == ["fleet.listener-failed"]


def test_ended_replicas_are_remembered_and_not_for_ever():
    fleet = Fleet(remembered=10)
    fleet.join(a_node())
    for number in range(50):
        replica_id = ReplicaId(f"r{number}")
        fleet.assign(a_replica(replica_id=replica_id))
        fleet.end(replica_id, STOPPED, now=11, detail="")
    assert fleet.replica(ReplicaId("r39")) is None
    assert fleet.replica(ReplicaId("r40")) is not None


def test_the_indexes_agree_with_the_tables_after_any_history():
    chance = random.Random(7)
    fleet = Fleet()
    for step in range(3000):
        node_id = NodeId(f"n{chance.randrange(3)}")
        alive = [it.replica_id for it in fleet.replicas()]
        match chance.randrange(6):
            case 0:
                fleet.join(a_node(node_id))
            case 1 if chance.random() < 0.1:
                fleet.leave(node_id, now=step, detail="")
            case 2 if fleet.node(node_id) is not None:
                replica = a_replica(replica_id=ReplicaId(f"r{step}"), node_id=node_id)
                fleet.assign(replica)
            case 3 if alive:
                state = chance.choice(list(ReplicaState))
                report = a_report(state, replica_id=chance.choice(alive), host="h", port=1)
                fleet.hear(node_id, report, now=step)
            case 4 if alive:
                fleet.end(chance.choice(alive), LOST, now=step, detail="")
            case 5 if ready := fleet.ready(CHAT1):
                fleet.drain(chance.choice(ready).replica_id, deadline_s=1, now=step, detail="")
        fleet.check_integrity()
