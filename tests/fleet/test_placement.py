from dataclasses import replace
from typing import Any

from control_plane.capacity.port import Need
from control_plane.fleet.need import need_of
from control_plane.fleet.node import Node
from control_plane.fleet.placement import NoRoom, Room, place, room_on
from control_plane.fleet.standby import StandbyLimits, size_standby, wishes_of, within
from infra.contracts.base import NodeId, RevisionName
from infra.contracts.node import Gpu, SleepTerms
from infra.contracts.revision import ReplicaState, Revision, SourceFile
from infra.gpus import Wish
from tests.fleet.makers import GIB, a_registration, a_revision, a_sleeper, a_source
from tests.fleet.test_replica import a_ready_report, a_replica
from worker.node.fake_gpus import a_gpu


def a_room(name: str, **changes: Any) -> Room:
    facts: dict[str, Any] = {
        "memory_bytes": 16 * GIB,
        "gpus": (),
        "free_memory_bytes": 16 * GIB,
        "free_gpus": (),
        "standby_free": 0,
        "replicas": 0,
    }
    return Room(NodeId(name), **(facts | changes))


def a_node(name: str = "n1", **changes: Any) -> Node:
    return Node.registered(a_registration(name, **changes), version=1, lease_s=10, now=0)


ONE_GIB = Need(GIB)
TWO_RANKS = {"tensor_parallel": 2}


def test_a_parked_worker_beats_an_emptier_node():
    rooms = [a_room("a"), a_room("b", standby_free=1, replicas=3)]
    assert place(ONE_GIB, rooms) == "b"


def test_a_node_where_the_model_sleeps_beats_a_parked_worker_if_it_has_the_memory():
    rooms = [a_room("a", standby_free=1), a_room("b", has_sleeper=True, replicas=3)]
    assert place(ONE_GIB, rooms) == "b"
    full = a_room("b", has_sleeper=True, free_memory_bytes=0)
    assert place(ONE_GIB, [rooms[0], full]) == "a"


def test_sleepers_take_no_room_and_are_known_by_their_revision():
    node = replace(a_node(), sleepers=(a_sleeper("chat@1"),))
    assert room_on(node, [], wanted_by=a_revision()).has_sleeper
    assert not room_on(node, [], wanted_by=a_revision(number=2)).has_sleeper
    assert room_on(node, []).free_memory_bytes == node.memory_bytes


def test_the_emptiest_node_then_the_most_memory_then_the_first_id():
    assert place(ONE_GIB, [a_room("a", replicas=1), a_room("b")]) == "b"
    assert place(ONE_GIB, [a_room("a"), a_room("b", free_memory_bytes=17 * GIB)]) == "b"
    assert place(ONE_GIB, [a_room("b"), a_room("a")]) == "a"


def test_memory_that_others_use_may_come_free():
    refusal = place(ONE_GIB, [a_room("a", free_memory_bytes=GIB - 1)])
    assert refusal == NoRoom(
        "a replica needs 1.0 GiB of memory; no node has that left",
        may_come=True,
        nearest="node a has 1.0 GiB of 16.0 GiB memory free",
    )


def test_memory_that_no_node_has_never_comes_free():
    refusal = place(Need(20 * GIB, is_estimate=True), [a_room("a")])
    assert isinstance(refusal, NoRoom) and not refusal.may_come
    assert "estimated from its weights: set resources.memory_mib" in refusal.reason


def test_gpus_are_counted_and_their_class_heeded():
    two = (a_gpu(0), a_gpu(1))
    rooms = [a_room("a"), a_room("b", gpus=two, free_gpus=two[1:])]
    assert place(Need(GIB, Wish(1)), rooms) == "b"
    assert place(Need(GIB, Wish(1, "L4")), rooms) == "b"
    assert place(Need(GIB, Wish(2, None, 20 * GIB)), rooms) == NoRoom(
        "a replica needs 2 GPUs with 20.0 GiB each and 1.0 GiB of memory; no node has that left",
        may_come=True,
        nearest="node b has 2 l4 (24.0 GiB), 1 of them free",
    )


def test_who_asks_for_a_gpu_that_nobody_has_hears_what_there_is():
    rooms = [a_room("a", gpus=(a_gpu(0), a_gpu(1, "t4"))), a_room("b", gpus=(a_gpu(2),))]
    assert place(Need(GIB, Wish(1, "h100")), rooms) == NoRoom(
        "a replica needs 1 h100 GPU and 1.0 GiB of memory; "
        "the nodes have 2 l4 (24.0 GiB), 1 t4 (24.0 GiB)",
        False,
    )
    assert place(Need(GIB, Wish(1)), [a_room("a")]) == NoRoom(
        "a replica needs 1 GPU and 1.0 GiB of memory; the nodes have no GPU", False
    )


def test_a_gpu_that_cannot_hold_the_weights_is_none():
    small = a_room("a", gpus=(a_gpu(0),), free_gpus=(a_gpu(0),))
    large = a_gpu(1, "h100", 80 * GIB)
    assert place(Need(GIB, Wish(1, None, 30 * GIB)), [small]) == NoRoom(
        "a replica needs 1 GPU with 30.0 GiB and 1.0 GiB of memory; the nodes have 1 l4 (24.0 GiB)",
        False,
    )
    both = [small, a_room("b", gpus=(large,), free_gpus=(large,))]
    assert place(Need(GIB, Wish(1, None, 30 * GIB)), both) == "b"


def test_a_gpu_in_trouble_does_not_come_free_and_who_runs_it_hears_why():
    hurt = a_gpu(0).model_copy(update={"trouble": "XID 79"})
    assert place(Need(GIB, Wish(1)), [a_room("a", gpus=(hurt,))]) == NoRoom(
        "a replica needs 1 GPU and 1.0 GiB of memory; no node has that",
        may_come=False,
        nearest="node a has 1 l4 (24.0 GiB), 0 of them free, GPU-0: XID 79",
    )


def test_gpus_are_those_of_replicas_that_have_them_and_of_those_that_will():
    replica = a_replica(revision=a_revision(resources={"gpus": 1}))
    node = a_node(gpus=(a_gpu(0), a_gpu(1, "t4"), a_gpu(2)))

    def free(*gpus: Gpu) -> list[str]:
        room = room_on(replace(node, gpus=gpus or node.gpus), [replica])
        return [gpu.gpu_id for gpu in room.free_gpus]

    assert free() == ["GPU-1", "GPU-2"]  # the node has not told yet; it will choose so
    told = a_gpu(2).model_copy(update={"replica_id": replica.replica_id})
    assert free(a_gpu(0), a_gpu(1, "t4"), told) == ["GPU-0", "GPU-1"]
    asleep = a_gpu(0).model_copy(update={"sleeper": "chat@1"})
    over = a_gpu(1).model_copy(update={"replica_id": "gone"})
    assert free(told, asleep, over) == ["GPU-0", "GPU-1"]


def test_without_any_node_there_is_no_room():
    assert place(ONE_GIB, []) == NoRoom("no node is registered", may_come=False)


def test_what_a_replica_needs_is_what_the_spec_says_or_an_estimate():
    spoken = a_revision(resources={"memory_mib": 2048, "gpus": 2, "gpu": "l4"}, engine=TWO_RANKS)
    assert need_of(spoken) == Need(2 * GIB, Wish(2, "l4", 128 << 20))
    estimate = need_of(a_revision())
    assert estimate.is_estimate and 0.5 * GIB < estimate.memory_bytes < GIB
    draft = a_source().model_copy(update={"files": (SourceFile(path="draft", size=GIB),)})
    with_draft = need_of(a_revision().model_copy(update={"draft_source": draft}))
    assert with_draft.memory_bytes > estimate.memory_bytes + GIB


def test_draining_replicas_still_take_room_and_loading_ones_claim_parked_workers():
    node = a_node()
    loading = a_replica()
    draining = a_replica().heard(a_ready_report(), now=11).to(ReplicaState.DRAINING, now=12)
    need = need_of(loading.revision).memory_bytes
    room = room_on(node, [loading, draining])
    assert room.free_memory_bytes == 16 * GIB - 2 * need
    assert (room.standby_free, room.replicas) == (-1, 2)


def test_standby_is_the_largest_wish_within_bounds():
    nodes = [a_node("big"), a_node("small", memory_bytes=2 * GIB)]
    wishes = [a_revision(scaling={"standby": wish}) for wish in (0, 3, 1)]

    def workers(revisions: list[Revision], nodes: list[Node], *, most: int) -> dict[NodeId, int]:
        limits = StandbyLimits(parked=most)
        sizes = size_standby(wishes_of(revisions), nodes, limits=limits)
        return {node: it.workers for node, it in sizes.items()}

    assert workers(wishes, nodes, most=4) == {"big": 3, "small": 1}
    assert workers(wishes, nodes, most=2) == {"big": 2, "small": 1}
    assert workers([], nodes, most=4) == {"big": 0, "small": 0}


def test_standby_reads_ahead_of_the_models_deployed_last():
    revisions = [
        a_revision(scaling={"standby": standby}).model_copy(
            update={"created_at": float(at), "source": a_source(str(at))}
        )
        for at, standby in [(1, 1), (3, 0), *((at, 1) for at in range(10, 20))]
    ]

    (standby,) = size_standby(wishes_of(revisions), [a_node()], limits=StandbyLimits()).values()

    assert [source.digest for source in standby.prepare] == [str(at) for at in range(19, 11, -1)]


def test_models_that_are_deployed_now_may_sleep_unless_they_say_no():
    revisions = [a_revision("a", 3), a_revision("b", scaling={"sleep": 0}), a_revision("c")]
    limits = StandbyLimits(sleepers=2, sleepers_memory=0.25)

    (standby,) = size_standby(wishes_of(revisions), [a_node()], limits=limits).values()

    names = (RevisionName("a@3"), RevisionName("c@1"))
    assert standby.sleep == SleepTerms(revisions=names, most=2, memory_bytes=4 * GIB)


def test_sleepers_may_hold_what_replicas_do_not_need():
    terms = SleepTerms(most=8, memory_bytes=4 * GIB)
    assert within(terms, a_room("a")) == terms
    assert within(terms, a_room("a", free_memory_bytes=GIB)).memory_bytes == GIB
    assert within(terms, a_room("a", free_memory_bytes=-GIB)).memory_bytes == 0
