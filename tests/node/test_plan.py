from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.base import ReplicaId
from infra.contracts.image import ImagePool
from infra.contracts.node import DesiredState
from infra.contracts.revision import ReplicaState
from tests.node.makers import assignment, desired, may_sleep, sleeping
from worker.node.allotment import GpusAtHand
from worker.node.fake_gpus import a_gpu
from worker.node.plan import (
    Await,
    Claim,
    DrainReplica,
    EndSleep,
    Forget,
    Kill,
    Launch,
    NodeView,
    Origin,
    Refuse,
    ReplicaView,
    Settle,
    StartZygote,
    StopZygote,
    WorkerView,
    ZygoteState,
    plan,
)
from worker.node.sleepers import Sleeping

R1 = ReplicaId("r1")
UP = ZygoteState.UP


def parked(worker_id: int) -> WorkerView:
    return WorkerView(worker_id, Origin.FORK, is_parked=True)


def forking(worker_id: int) -> WorkerView:
    return WorkerView(worker_id, Origin.FORK, is_parked=False)


def spawning(worker_id: int) -> WorkerView:
    return WorkerView(worker_id, Origin.SPAWN, is_parked=False)


def owned(worker_id: int, replica: str = "r1") -> WorkerView:
    return WorkerView(worker_id, Origin.FORK, is_parked=True, replica_id=ReplicaId(replica))


def test_an_empty_node_that_should_be_empty_has_nothing_to_do() -> None:
    assert plan(desired(), NodeView()) == ()


def test_the_most_advanced_unclaimed_worker_is_claimed_and_the_oldest_of_equals() -> None:
    workers = (spawning(1), forking(2), owned(3, "other"), parked(5), parked(4))
    replicas = {ReplicaId("other"): ReplicaView(ReplicaState.READY, 3)}
    wanted = [assignment(f"r{n}") for n in range(4)]

    actions = plan(
        desired(assignment("other"), *wanted),
        NodeView(workers, replicas, zygote=ZygoteState.ABSENT),
    )

    assert actions == tuple(
        Claim(worker_id, replica) for worker_id, replica in zip([4, 5, 2, 1], wanted, strict=True)
    )


def test_without_a_standby_a_replica_is_forked_where_there_is_a_zygote_else_spawned() -> None:
    want = desired(assignment(), standby=0)

    assert plan(want, NodeView(zygote=UP)) == (Launch(Origin.FORK, assignment()),)
    assert plan(want, NodeView(zygote=ZygoteState.BOOTING)) == (Launch(Origin.FORK, assignment()),)
    assert plan(want, NodeView(zygote=ZygoteState.ABSENT)) == (Launch(Origin.SPAWN, assignment()),)
    assert plan(want, NodeView(zygote=ZygoteState.RESTING)) == (Launch(Origin.SPAWN, assignment()),)


def test_standby_starts_a_zygote_and_forks_what_is_missing() -> None:
    assert plan(desired(standby=2), NodeView()) == (
        StartZygote(),
        Launch(Origin.FORK, None),
        Launch(Origin.FORK, None),
    )
    assert plan(desired(standby=2), NodeView((forking(1),), zygote=UP)) == (
        Launch(Origin.FORK, None),
    )


def test_refilling_waits_while_a_climb_has_the_cores_and_while_the_zygote_rests() -> None:
    want = desired(standby=1)

    assert plan(want, NodeView(zygote=UP, may_refill=False)) == ()
    assert plan(want, NodeView(zygote=ZygoteState.RESTING)) == ()


def test_too_many_standby_workers_are_killed_least_advanced_first() -> None:
    workers = (parked(1), parked(2), forking(3))

    assert plan(desired(standby=1), NodeView(workers, zygote=UP)) == (Kill(3), Kill(2))


def test_no_standby_stops_the_zygote_unless_a_replica_still_comes_from_it() -> None:
    climbing = WorkerView(1, Origin.FORK, is_parked=False, replica_id=R1)
    replicas = {R1: ReplicaView(ReplicaState.STARTING, 1)}

    assert plan(desired(), NodeView(zygote=UP)) == (StopZygote(),)
    assert plan(desired(assignment()), NodeView((climbing,), replicas, UP)) == ()


def test_an_unlisted_replica_is_killed_and_forgotten_once_it_has_ended() -> None:
    def node(state: ReplicaState, worker_id: int | None) -> NodeView:
        return NodeView((owned(1),) if worker_id else (), {R1: ReplicaView(state, worker_id)})

    assert plan(desired(), node(ReplicaState.READY, 1)) == (Kill(1),)
    assert plan(desired(), node(ReplicaState.FAILED, 1)) == (Kill(1),)
    assert plan(desired(), node(ReplicaState.READY, None)) == ()  # it is dying
    assert plan(desired(), node(ReplicaState.STOPPED, None)) == (Forget(R1),)
    assert plan(desired(), node(ReplicaState.ASSIGNED, None)) == (Forget(R1),)


def test_an_ended_replica_that_is_still_listed_is_not_started_again() -> None:
    for state in (ReplicaState.FAILED, ReplicaState.LOST, ReplicaState.STOPPED):
        assert plan(desired(assignment()), NodeView(replicas={R1: ReplicaView(state)})) == ()


def test_a_replica_whose_fork_came_to_nothing_gets_another_process() -> None:
    replicas = {R1: ReplicaView(ReplicaState.ASSIGNED)}

    assert plan(desired(assignment()), NodeView((parked(7),), replicas)) == (
        Claim(7, assignment()),
    )


def test_draining() -> None:
    want = desired(assignment(desired="drain"))

    def act(state: ReplicaState) -> object:
        return plan(want, NodeView((owned(1),), {R1: ReplicaView(state, 1)}))

    assert act(ReplicaState.READY) == (DrainReplica(R1, 5),)
    assert act(ReplicaState.STARTING) == (Kill(1),)
    assert act(ReplicaState.DRAINING) == ()
    assert plan(want, NodeView()) == (Settle(assignment(desired="drain")),)


def test_only_a_replica_whose_revision_may_sleep_is_told_so() -> None:
    drain = assignment(desired="drain", sleep_s=60)
    ready = NodeView((owned(1),), {R1: ReplicaView(ReplicaState.READY, 1)})

    assert plan(may_sleep(desired(drain)), ready) == (DrainReplica(R1, 5, may_sleep=True),)
    assert plan(may_sleep(desired(drain), "tiny@2"), ready) == (DrainReplica(R1, 5),)
    assert plan(may_sleep(desired(assignment(desired="drain"))), ready) == (DrainReplica(R1, 5),)


def test_who_sleeps_with_the_same_model_is_woken_before_a_parked_worker_is_claimed() -> None:
    other = sleeping(1, since=9, digest="sha256:another model")
    node = NodeView((parked(4),), zygote=UP, sleeping=(other, sleeping(2), sleeping(3, since=5)))
    wanted = [assignment(f"r{n}") for n in range(4)]

    actions = plan(may_sleep(desired(*wanted)), node)

    assert actions == (
        Claim(3, wanted[0]),  # who fell asleep last: the others are closer to their end anyway
        Claim(2, wanted[1]),
        Claim(4, wanted[2]),
        Launch(Origin.FORK, wanted[3]),
    )


def test_other_engine_settings_are_another_model() -> None:
    node = NodeView(sleeping=(sleeping(1, engine={"quantization": "int8"}),), zygote=UP)

    assert plan(may_sleep(desired(assignment())), node) == (Launch(Origin.FORK, assignment()),)


def test_who_slept_as_one_model_never_wakes_as_another_of_the_same_files() -> None:
    node = NodeView(sleeping=(sleeping(1, revision="other@1"),), zygote=UP)

    assert plan(may_sleep(desired(assignment()), "tiny@1", "other@1"), node) == (
        Launch(Origin.FORK, assignment()),
    )


def test_sleepers_are_no_standby_workers() -> None:
    node = NodeView((parked(1),), zygote=UP, sleeping=(sleeping(2),))

    assert plan(may_sleep(desired(standby=1)), node) == ()
    assert plan(may_sleep(desired(standby=2)), node) == (Launch(Origin.FORK, None),)


def test_who_slept_its_time_or_is_no_longer_served_is_ended() -> None:
    node = NodeView(sleeping=(sleeping(1, since=1, is_over=True), sleeping(2, revision="tiny@0")))

    assert plan(may_sleep(desired()), node) == (
        EndSleep(1, "slept its time"),
        EndSleep(2, "its revision is no longer served"),
    )


def test_who_fell_asleep_first_gives_way_when_number_or_memory_run_out() -> None:
    node = NodeView(sleeping=tuple(sleeping(n, since=n, memory_bytes=100) for n in (3, 1, 2)))

    assert plan(may_sleep(desired(), most=2), node) == (EndSleep(1, "2 others fell asleep later"),)
    assert plan(may_sleep(desired(), memory_bytes=299), node) == (
        EndSleep(1, "its memory is needed"),
    )
    assert plan(may_sleep(desired(), memory_bytes=300), node) == ()
    assert plan(may_sleep(desired(), memory_bytes=0), node) == tuple(
        EndSleep(n, "its memory is needed") for n in (3, 2, 1)
    )


def test_one_that_is_too_large_does_not_end_smaller_ones_that_fit() -> None:
    node = NodeView(
        sleeping=(sleeping(1, since=1, memory_bytes=50), sleeping(2, since=2, memory_bytes=500))
    )

    assert plan(may_sleep(desired(), memory_bytes=100), node) == (
        EndSleep(2, "its memory is needed"),
    )


def test_who_is_woken_is_not_ended_for_lack_of_memory() -> None:
    node = NodeView(sleeping=(sleeping(1), sleeping(2, since=1)))

    assert plan(may_sleep(desired(assignment()), memory_bytes=0), node) == (
        Claim(2, assignment()),
        EndSleep(1, "its memory is needed"),
    )


def test_a_replica_starts_once_there_are_gpus_for_it() -> None:
    wanted = [assignment("r1", gpus=1), assignment("r2", gpus=1), assignment("r3")]
    node = NodeView((parked(1),), zygote=UP, gpus=GpusAtHand((a_gpu(0),)))

    assert plan(desired(*wanted), node) == (
        Claim(1, wanted[0], (a_gpu(0).gpu_id,)),
        Await(wanted[1]),
        Launch(Origin.FORK, wanted[2]),
    )


def test_a_model_of_several_processes_starts_in_one_that_is_forked_with_its_ranks() -> None:
    wanted = assignment("r1", gpus=2)
    node = NodeView((parked(1),), zygote=UP, gpus=GpusAtHand((a_gpu(0), a_gpu(1))))
    gpus = (a_gpu(0).gpu_id, a_gpu(1).gpu_id)

    assert plan(desired(wanted, standby=1), node) == (Launch(Origin.FORK, wanted, gpus),)


def test_a_sleeper_wakes_on_its_own_gpu_and_gives_way_to_another_model() -> None:
    on_gpu = assignment("r1", gpus=1)
    asleep = replace(sleeping(1, gpus=(a_gpu(0),)), recipe=on_gpu.recipe)
    node = NodeView(zygote=UP, sleeping=(asleep,))

    assert plan(may_sleep(desired(on_gpu)), node) == (Claim(1, on_gpu), StopZygote())
    other = assignment("r2", gpus=1).model_copy(update={"model": "other"})
    assert plan(may_sleep(desired(other)), node) == (
        Await(other),
        EndSleep(1, "its GPUs are needed"),
        StopZygote(),
    )


def test_a_sleeper_whose_gpu_is_in_trouble_ends_and_does_not_wake() -> None:
    on_gpu = assignment("r1", gpus=1)
    hurt = replace(sleeping(1, gpus=(a_gpu(0),)), recipe=on_gpu.recipe, is_hurt=True)
    node = NodeView((parked(2),), zygote=UP, sleeping=(hurt,), gpus=GpusAtHand((a_gpu(1),)))

    actions = plan(may_sleep(desired(on_gpu, standby=1)), node)

    assert actions == (
        Claim(2, on_gpu, (a_gpu(1).gpu_id,)),
        EndSleep(1, "its GPU is in trouble"),
    )


worker_views = st.builds(
    WorkerView, st.integers(1, 6), st.sampled_from(Origin), st.booleans(), st.none()
)


sleepers = st.builds(
    sleeping,
    st.integers(7, 12),
    revision=st.sampled_from(["tiny@1", "tiny@2"]),
    since=st.integers(0, 3),
    memory_bytes=st.integers(0, 4),
    digest=st.sampled_from(["sha256:0", "sha256:1"]),
    is_over=st.booleans(),
)


@given(
    sleeping=st.lists(sleepers, unique_by=lambda one: one.worker_id, max_size=5),
    replicas=st.integers(0, 3),
    most=st.integers(0, 4),
    memory_bytes=st.integers(0, 8),
)
def test_who_goes_on_sleeping_is_within_the_terms_and_who_wakes_has_the_model(
    sleeping: list[Sleeping], replicas: int, most: int, memory_bytes: int
) -> None:
    wanted = [assignment(f"r{n}") for n in range(replicas)]
    state = may_sleep(desired(*wanted), most=most, memory_bytes=memory_bytes)

    actions = plan(state, NodeView(zygote=UP, sleeping=tuple(sleeping)))

    woken = {action.worker_id for action in actions if isinstance(action, Claim)}
    ended = {action.worker_id for action in actions if isinstance(action, EndSleep)}
    fitting = [one for one in sleeping if one.recipe == assignment().recipe]
    left = [one for one in sleeping if one.worker_id not in woken | ended]
    assert not woken & ended
    assert woken <= {one.worker_id for one in fitting}
    assert len(woken) == min(len(fitting), replicas)
    assert len(left) <= most
    assert sum(one.told.memory_bytes for one in left) <= memory_bytes
    assert all(one.told.revision == "tiny@1" and not one.is_over for one in left)


@given(
    workers=st.lists(worker_views, unique_by=lambda worker: worker.worker_id, max_size=6),
    replicas=st.integers(0, 5),
    standby=st.integers(0, 4),
    zygote=st.sampled_from(ZygoteState),
    may_refill=st.booleans(),
)
def test_every_replica_gets_one_process_and_no_worker_two_fates(
    workers: list[WorkerView], replicas: int, standby: int, zygote: ZygoteState, may_refill: bool
) -> None:
    wanted = [assignment(f"r{n}") for n in range(replicas)]

    actions = plan(
        desired(*wanted, standby=standby), NodeView(tuple(workers), {}, zygote, may_refill)
    )

    claims = [action for action in actions if isinstance(action, Claim)]
    launches = [action for action in actions if isinstance(action, Launch)]
    kills = [action for action in actions if isinstance(action, Kill)]
    given_to = [c.assignment for c in claims] + [x.assignment for x in launches if x.assignment]
    assert sorted(a.replica_id for a in given_to) == sorted(a.replica_id for a in wanted)
    fates = [claim.worker_id for claim in claims] + [kill.worker_id for kill in kills]
    assert len(fates) == len(set(fates))
    spare = len(workers) - len(claims) - len(kills) + sum(x.assignment is None for x in launches)
    assert spare <= max(standby, 0)
    assert not (claims and len(claims) < len(workers) and any(x.assignment for x in launches))


IMAGE, OTHER = "r.io/own@sha256:1", "r.io/other@sha256:2"


def of(image: str | None, worker: WorkerView) -> WorkerView:
    return replace(worker, image=image)


def with_pools(state: DesiredState, **pools: int) -> DesiredState:
    images = {"own": IMAGE, "other": OTHER}
    named = [ImagePool(image=images[name], workers=number) for name, number in pools.items()]
    return state.model_copy(update={"pools": tuple(named)})


def test_a_replica_claims_a_worker_of_its_own_image_only() -> None:
    mine, its_own = assignment("r1", image=IMAGE), assignment("r2")
    node = NodeView((of(OTHER, parked(1)), of(IMAGE, forking(2)), parked(3)), runs_images=True)
    wanted = with_pools(desired(mine, its_own), other=1)

    assert plan(wanted, node) == (Claim(2, mine), Claim(3, its_own))
    alone = replace(node, workers=(of(OTHER, parked(1)),))
    assert plan(wanted, alone) == (
        Launch(Origin.SPAWN, mine, image=IMAGE),
        Launch(Origin.SPAWN, its_own),
    )


def test_a_node_of_processes_refuses_a_replica_of_an_image() -> None:
    mine = assignment(image=IMAGE)
    assert plan(desired(mine), NodeView((parked(1),))) == (Refuse(mine), Kill(1))


def test_a_sleeper_of_another_image_is_not_woken() -> None:
    mine = assignment(image=IMAGE)
    node = NodeView(sleeping=(sleeping(1),), runs_images=True)
    assert plan(may_sleep(desired(mine)), node) == (Launch(Origin.SPAWN, mine, image=IMAGE),)


def test_each_image_has_a_pool_and_needs_no_fork_server_for_it() -> None:
    wanted = with_pools(desired(), own=2, other=1)
    node = NodeView((of(IMAGE, parked(1)),), zygote=ZygoteState.RESTING, runs_images=True)

    assert plan(wanted, node) == (
        Launch(Origin.SPAWN, None, image=IMAGE),
        Launch(Origin.SPAWN, None, image=OTHER),
    )
    assert plan(wanted, replace(node, resting=frozenset({IMAGE}))) == (
        Launch(Origin.SPAWN, None, image=OTHER),
    )
    assert plan(wanted, replace(node, may_refill=False)) == ()


def test_workers_of_an_image_that_nobody_wants_any_more_are_ended() -> None:
    workers = (of(IMAGE, parked(1)), of(IMAGE, forking(2)), of(OTHER, parked(3)))
    assert plan(with_pools(desired(), own=1), NodeView(workers, runs_images=True)) == (
        Kill(2),
        Kill(3),
    )
