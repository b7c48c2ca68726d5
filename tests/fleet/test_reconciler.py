import asyncio
from dataclasses import replace

from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Script
from control_plane.fleet.patience import Patience
from infra.contracts.base import RevisionName
from infra.contracts.revision import ReplicaState
from infra.errors import NoCapacity, PlatformError
from tests.fleet.world import CRASH, SLOW, World, run

READY, STARTING, DRAINING = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING


class Reconciling(World):
    """A world whose autoscaler decides nothing: the tests do."""

    async def __aenter__(self) -> "Reconciling":
        self.autoscaler._is_leading = lambda: False
        await super().__aenter__()
        await asyncio.sleep(0.001)
        self.told: list[tuple[RevisionName, PlatformError]] = []
        self.reconciler.subscribe_failed(lambda *news: self.told.append(news))
        return self


def test_what_is_missing_starts_before_the_call_returns():
    async def main() -> None:
        async with Reconciling() as world:
            revision = await world.deploy()
            world.reconciler.set_desired(revision, 3, "test")
            assert world.alive() == [ReplicaState.ASSIGNED] * 3
            world.reconciler.set_desired(revision, 3, "test")
            assert world.started() == 3

    run(main())


def test_the_youngest_drain_first():
    async def main() -> None:
        async with Reconciling(script=Script(drain_s=9)) as world:
            revision = await world.deploy()
            for count in (1, 2, 3):
                world.reconciler.set_desired(revision, count, "test")
                await asyncio.sleep(5)
            world.reconciler.set_desired(revision, 1, "test")
            assert world.alive() == [READY, DRAINING, DRAINING]

    run(main())


def test_a_ready_replica_is_not_given_up_for_one_that_loads():
    async def main() -> None:
        async with Reconciling(script=replace(SLOW, drain_s=9)) as world:
            revision = await world.deploy()
            world.capacity.next_scripts.append(Script())
            world.reconciler.set_desired(revision, 1, "test")
            await asyncio.sleep(5)
            world.reconciler.set_desired(revision, 2, "test")
            await asyncio.sleep(5)
            world.reconciler.set_desired(revision, 1, "test")
            assert world.alive() == [READY, STARTING]
            await world.until(lambda: world.alive() == [READY, DRAINING], seconds=30)

    run(main())


def test_growing_while_one_drains_starts_another():
    async def main() -> None:
        async with Reconciling(script=Script(drain_s=60)) as world:
            revision = await world.deploy()
            world.reconciler.set_desired(revision, 1, "test")
            await asyncio.sleep(5)
            world.reconciler.set_desired(revision, 0, "test")
            world.reconciler.set_desired(revision, 1, "test")
            assert world.alive() == [DRAINING, ReplicaState.ASSIGNED]

    run(main())


def test_a_crash_loop_tries_one_at_a_time_and_grows_once_one_is_up():
    async def main() -> None:
        async with Reconciling() as world:
            revision = await world.deploy()
            world.capacity.next_scripts.extend([Script(fails_after=1, failure=CRASH)] * 4)
            world.reconciler.set_desired(revision, 3, "test")
            await asyncio.sleep(1.1)
            assert world.reconciler.standing(revision.name).crash.is_open
            assert len(world.alive()) == 1
            await world.until(lambda: world.alive() == [READY] * 3, seconds=30)
            await asyncio.sleep(10)
            assert world.reconciler.standing(revision.name).crash.failures == 0

    run(main())


def test_a_crash_beside_a_ready_replica_sends_nobody_away():
    async def main() -> None:
        async with Reconciling() as world:
            revision = await world.deploy()
            world.reconciler.set_desired(revision, 1, "test")
            await asyncio.sleep(10)
            world.capacity.next_scripts.extend([Script(fails_after=1, failure=CRASH)] * 9)
            world.reconciler.set_desired(revision, 2, "test")
            await asyncio.sleep(10)
            assert world.told == []
            assert world.reconciler.standing(revision.name).crash.is_open

    run(main())


def test_without_any_node_waiters_are_told_after_a_while_and_served_when_one_comes():
    async def main() -> None:
        world = Reconciling(most=0)
        world.capacity._most = 1
        async with world:
            await world.machine().kill()
            world.capacity._most = 0
            revision = await world.deploy()
            world.reconciler.set_desired(revision, 1, "test")
            await asyncio.sleep(14)
            assert world.told == []
            await asyncio.sleep(3)
            name, error = world.told[0]
            assert name == revision.name and isinstance(error, NoCapacity)
            assert "no node is registered" in error.detail
            assert error.hint == "`platform nodes` shows what each node has"
            world.capacity._most = 1
            await world.until(lambda: world.alive() == [READY], seconds=40)
            assert world.reconciler.standing(revision.name).refused is None

    run(main())


def test_waiting_plans_get_room_in_the_order_they_came():
    async def main() -> None:
        async with Reconciling(shape=MachineShape(boot_s=30)) as world:
            needs = {"resources": {"memory_mib": 9000}}
            for name in ("b", "a", "c"):
                world.reconciler.set_desired(await world.deploy(name, **needs), 1, "test")
                await asyncio.sleep(1)
            await asyncio.sleep(40)
            assert [it.model for it in world.fleet.replicas()] == ["b"]
            world.machine().crash(world.fleet.replicas()[0].replica_id)
            await asyncio.sleep(1)
            assert [it.model for it in world.fleet.replicas()] == ["b"]  # its need is older

    run(main())


def test_a_machine_has_a_replica_for_each_of_its_gpus_and_the_next_one_waits():
    async def main() -> None:
        async with Reconciling(shape=MachineShape(gpus=2, gpu="l4")) as world:
            revision = await world.deploy(resources={"gpus": 1, "gpu": "l4"}, scaling={"max": 3})
            world.reconciler.set_desired(revision, 3, "test")
            await world.until(lambda: world.alive() == [READY, READY])
            await asyncio.sleep(5)
            assert world.alive() == [READY, READY]
            blocked = world.reconciler.standing(revision.name).blocked
            assert blocked is not None and blocked.endswith("no node has that left")

            world.machine().crash(world.fleet.replicas()[0].replica_id)
            await world.until(lambda: world.alive() == [READY, READY])

    run(main())


def test_who_waits_for_a_class_of_gpu_that_no_machine_has_is_told_what_there_is():
    async def main() -> None:
        async with Reconciling(shape=MachineShape(gpus=2, gpu="l4")) as world:
            revision = await world.deploy(resources={"gpus": 1, "gpu": "h100"})
            world.reconciler.set_desired(revision, 1, "test")
            await asyncio.sleep(2)
            [(name, error), *_] = world.told
            assert name == revision.name and isinstance(error, NoCapacity)
            assert "needs 1 h100 GPU" in error.detail and "the nodes have 2 l4" in error.detail
            assert "no machine has a h100 GPU" in error.detail

    run(main())


def test_a_climb_without_progress_is_given_up_and_one_that_goes_on_is_not():
    async def main() -> None:
        patience = Patience(stall_s=30)
        async with Reconciling(script=SLOW, patience=patience) as world:
            revision = await world.deploy()
            hangs = replace(SLOW, fails_after=2, hangs=True)  # 20 s of weights, then nothing
            world.capacity.next_scripts.append(hangs)
            world.reconciler.set_desired(revision, 2, "test")
            await asyncio.sleep(50)
            assert world.moves(ReplicaState.FAILED) == []
            await world.until(lambda: world.moves(ReplicaState.FAILED))
            [lost] = list(world.fleet._replicas._ended.values())
            assert lost.detail == "made no progress for 30 s"
            await world.until(lambda: world.alive() == [READY, READY])

    run(main())


def test_a_drain_that_its_node_does_not_end_is_ended():
    async def main() -> None:
        before_its_node = Patience(drain_margin_s=-15)
        async with Reconciling(script=Script(drain_s=3600), patience=before_its_node) as world:
            revision = await world.deploy(timeouts={"execution": 20})
            world.reconciler.set_desired(revision, 1, "test")
            await asyncio.sleep(5)
            world.reconciler.set_desired(revision, 0, "test")
            assert world.alive() == [DRAINING]
            assert 5 <= await world.until(lambda: not world.alive()) <= 7
            [ended] = world.fleet._replicas._ended.values()
            assert ended.detail == "was killed at its drain deadline"

    run(main())


def test_a_sweep_looks_at_no_replica_whose_time_has_not_come():
    async def main() -> None:
        async with Reconciling() as world:
            revision = await world.deploy()
            world.reconciler.set_desired(revision, 5, "test")
            await world.until(lambda: world.alive() == [READY] * 5)
            await asyncio.sleep(60)  # they were looked at when they might have hung
            looks: list[str] = []
            for name in ("replica", "replicas", "of_revision", "on_node"):
                setattr(world.fleet, name, lambda *_, name=name: looks.append(name))

            for _ in range(100):
                world.reconciler.sweep(world.now())

            assert looks == []
            for name in ("replica", "replicas", "of_revision", "on_node"):
                delattr(world.fleet, name)

    run(main())
