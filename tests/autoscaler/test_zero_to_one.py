"""The edge between zero and one, driven over simulated machines in virtual time."""

import asyncio
from dataclasses import replace

import pytest

from control_plane.capacity.simulated.machine import MachineShape
from control_plane.capacity.simulated.script import Climbing, Script
from infra.contracts.base import ModelName, NodeId, RevisionName
from infra.contracts.revision import ModelState, ReplicaState
from infra.contracts.stage import Rung, Stage
from infra.errors import ModelNotFound, NoCapacity, ReplicaFailed
from tests.fleet.makers import a_registration
from tests.fleet.world import BROKEN, COLD_S, CRASH, SLOW, World, run

READY, STARTING, DRAINING = ReplicaState.READY, ReplicaState.STARTING, ReplicaState.DRAINING


def test_a_request_at_zero_starts_one_replica_without_waiting_for_any_tick():
    async def main() -> None:
        async with World() as world:
            await world.deploy()
            await asyncio.sleep(5.0)
            outcome = await world.request(seconds=0.1)
            assert outcome.error is None and outcome.started_at is not None
            assert outcome.started_at - outcome.arrived_at == pytest.approx(COLD_S, abs=1e-6)
            replica = world.fleet.replicas()[0]
            assert replica.from_rung is Rung.RUNTIME
            assert replica.wanted_at == outcome.arrived_at

    run(main())


def test_a_poke_answers_the_node_within_the_same_instant():
    async def main() -> None:
        async with World() as world:
            revision = await world.deploy()
            await asyncio.sleep(5.0)
            version = world.fleet.nodes()[0].version
            world.request()
            await asyncio.sleep(0)  # the request arrives
            assert world.fleet.nodes()[0].version == version + 1
            assert [it.revision for it in world.fleet.replicas()] == [revision]
            at = world.now()
            for _ in range(10):  # turns of the loop, no time
                await asyncio.sleep(0)
            assert len(world.machine().started) == 1
            assert world.now() == at

    run(main())


def test_replicas_that_take_one_request_at_a_time_are_as_many_as_requests():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"max": 3}, limits={"max_concurrency": 1})
            for _ in range(3):
                world.request(seconds=300)
            await world.until(lambda: world.alive() == [READY] * 3)

    run(main())


def test_an_idle_model_reaches_zero_after_its_grace_and_not_before():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 30})
            outcome = await world.request(seconds=2)
            assert outcome.ended_at is not None
            await asyncio.sleep(29)
            assert world.alive() == [READY]
            await world.until(lambda: not world.alive(), seconds=2.1)
            assert world.reconciler.standing(RevisionName("chat@1")).desired == 0
            assert world.load() == 0

    run(main())


def test_short_requests_between_two_ticks_keep_the_last_replica():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 3})
            await world.request(seconds=0.01)
            for _ in range(100):  # every look of the autoscaler finds nothing in flight
                await asyncio.sleep(1.3)
                await world.request(seconds=0.001)
            assert world.started() == 1

    run(main())


def test_five_hundred_requests_at_once_wake_one_replica_and_all_are_served_in_order():
    async def main() -> None:
        async with World() as world:
            await world.deploy()
            await asyncio.sleep(5)
            requests = [world.request(seconds=0.05) for _ in range(500)]
            outcomes = await asyncio.gather(*requests)
            assert [it.error for it in outcomes] == [None] * 500
            starts = [it.started_at or 0.0 for it in outcomes]
            assert starts == sorted(starts)
            assert world.started() == 1
            await world.until(lambda: not world.alive(), seconds=70)
            assert world.load() == 0

    run(main())


def test_a_replica_that_loads_is_not_stopped_though_its_waiter_left():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"grace": 1})
            request = world.request()
            await asyncio.sleep(5)
            request.cancel()
            await asyncio.sleep(15)
            assert world.alive() == [STARTING]
            await world.until(lambda: world.alive() == [READY], seconds=10)
            await world.until(lambda: not world.alive(), seconds=4)
            assert world.moves(ReplicaState.FAILED) == []

    run(main())


def test_the_grace_begins_when_the_replica_is_ready_not_before():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"grace": 10})
            request = world.request()
            await asyncio.sleep(1)
            request.cancel()
            await world.until(lambda: world.alive() == [READY])
            await asyncio.sleep(8.5)
            assert world.alive() == [READY]

    run(main())


def test_a_request_that_comes_while_the_last_replica_drains_starts_another_at_once():
    async def main() -> None:
        async with World(script=Script(drain_s=20)) as world:
            await world.deploy(scaling={"grace": 1})
            await world.request()
            await world.until(lambda: world.alive() == [DRAINING])
            outcome = await world.request()
            assert outcome.error is None and outcome.started_at is not None
            assert outcome.started_at - outcome.arrived_at == pytest.approx(COLD_S, abs=1e-6)
            assert world.alive() == [DRAINING, READY]

    run(main())


@pytest.mark.parametrize("offset_ms", range(-20, 21, 4))
def test_a_request_racing_with_scale_to_zero_is_never_lost(offset_ms: int):
    async def find() -> float:
        async with World(script=Script(drain_s=0.013)) as world:
            await world.deploy(scaling={"grace": 2})
            await world.request()
            await world.until(lambda: DRAINING in world.alive())
            return world.moves(DRAINING)[0]

    found = run(find())

    async def race() -> None:
        async with World(script=Script(drain_s=0.013)) as world:
            await world.deploy(scaling={"grace": 2})
            await world.request()
            await asyncio.sleep(found + offset_ms / 1000 - world.now())
            outcome = await asyncio.wait_for(world.request(), 5)
            assert outcome.error is None and outcome.attempts == 1
            await world.until(lambda: not world.alive(), seconds=10)

    run(race())


def test_a_node_is_told_who_may_sleep_in_the_call_that_registers_it_or_changes_it():
    """So no restart of the control plane ends a sleeper, and no sleeper outlives its revision."""

    async def main() -> None:
        async with World() as world:

            def may_sleep(node: str) -> tuple[str, ...]:
                return world.fleet.desired_state(NodeId(node)).sleep.revisions

            await world.deploy()
            world.sessions.register(a_registration("n2"), now=world.now())
            assert may_sleep("n2") == ("chat@1",)
            await world.deploy(scaling={"grace": 3})
            assert may_sleep("n2") == ("chat@2",)
            await world.deploy(scaling={"sleep": 0})
            assert may_sleep("n2") == ()

    run(main())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_replica_that_dies_in_a_stage_with_waiters_is_replaced_at_once(stage: int):
    async def main() -> None:
        async with World(shape=MachineShape(fork_s=0.001)) as world:
            await world.deploy(scaling={"standby": 2})
            await asyncio.sleep(5)
            world.capacity.next_scripts.append(Script(fails_after=stage))
            outcome = await world.request()
            assert outcome.error is None and outcome.started_at is not None
            died_after = [0, 0.02, 0.22, COLD_S][stage]
            waited = outcome.started_at - outcome.arrived_at
            assert waited == pytest.approx(died_after + COLD_S, abs=1e-6)
            assert world.started() == 2

    run(main())


def test_the_timings_of_a_replaced_attempt_are_part_of_the_wait():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"standby": 2})
            await asyncio.sleep(5)
            world.capacity.next_scripts.append(Script(fails_after=2))
            outcome = await world.request()
            assert outcome.endpoint is not None and outcome.started_at is not None
            timings = world.fleet.timings(outcome.endpoint.replica_id)
            stages = [timing.stage for timing in timings if timing.seconds > 0]
            assert stages.count(Stage.WEIGHTS) == 2
            explained = sum(timing.seconds for timing in timings)
            waited = outcome.started_at - outcome.arrived_at
            assert explained == pytest.approx(waited, abs=1e-6)

    run(main())


def test_a_request_dispatched_to_a_replica_that_died_waited_for_both_climbs():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"standby": 2})
            await asyncio.sleep(5)
            world.capacity.next_scripts.append(Script(lives_s=0.01))
            outcome = await world.request(seconds=1)
            assert outcome.endpoint is not None and outcome.started_at is not None
            timings = world.fleet.timings(outcome.endpoint.replica_id)
            waited = outcome.started_at - outcome.arrived_at
            assert waited == pytest.approx(2 * COLD_S + 0.01, abs=1e-6)
            assert sum(it.seconds for it in timings) == pytest.approx(2 * COLD_S, abs=1e-6)

    run(main())


def test_a_ready_replica_that_dies_is_replaced_for_those_it_served():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"standby": 2})
            request = world.request(seconds=5)
            await world.until(lambda: world.alive() == [READY])
            await asyncio.sleep(1)
            world.machine().crash(world.fleet.replicas()[0].replica_id)
            outcome = await request
            assert outcome.error is None and outcome.attempts == 2
            assert world.started() == 2

    run(main())


def test_a_ready_replica_that_dies_idle_is_not_replaced_at_zero_minimum_for_long():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 5})
            await world.request()
            await asyncio.sleep(1)
            world.machine().crash(world.fleet.replicas()[0].replica_id)
            await world.until(lambda: not world.alive(), seconds=8)
            await asyncio.sleep(60)
            assert world.alive() == []

    run(main())


def test_a_node_lost_while_loading_is_waited_for_and_the_request_served():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy()
            request = world.request()
            await asyncio.sleep(10)
            await world.machine().restart_agent()
            outcome = await request
            assert outcome.error is None
            assert len(world.moves(ReplicaState.LOST)) == 1
            assert world.started() == 2

    run(main())


def test_agents_that_stop_in_order_are_no_failures_of_the_model_they_ran():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy()
            request = world.request()
            for at_s in (10, 10, 26, 10, 10):  # three while it loads, one while it serves
                await asyncio.sleep(at_s)
                await world.machine().restart_agent(is_orderly=True)
                assert world.explain().state is not ModelState.FAILING
            outcome = await request
            assert outcome.error is None
            assert world.reconciler.standing(RevisionName("chat@1")).crash.failures == 0
            assert world.started() == 6, "and none was given to a node that was going"

    run(main())


def test_a_silent_node_loses_its_replicas_when_its_lease_ends_and_another_takes_over():
    async def main() -> None:
        async with World(script=SLOW, most=2) as world:
            await world.deploy()
            request = world.request()
            await asyncio.sleep(10)
            world.machine().partition()
            await asyncio.sleep(14)
            assert len(world.moves(ReplicaState.LOST)) == 1
            outcome = await request
            assert outcome.error is None and outcome.endpoint is not None
            assert outcome.endpoint.node_id != "local"
            world.machine().heal()
            await asyncio.sleep(30)
            assert world.machine().replicas() == ()  # what it still ran, it was told to end

    run(main())


def test_a_crash_loop_tells_the_waiters_backs_off_and_a_later_request_tries_again():
    async def main() -> None:
        async with World(script=Script(fails_after=1, failure=CRASH)) as world:
            await world.deploy()
            outcome = await world.request()
            assert isinstance(outcome.error, ReplicaFailed)
            assert "out of memory" in outcome.error.detail
            assert world.started() == 3
            explanation = world.explain()
            assert explanation.state is ModelState.FAILING
            assert "out of memory" in explanation.reason
            at_once = await world.request()
            assert isinstance(at_once.error, ReplicaFailed)
            assert at_once.error.facts["retry_after_s"] > 0
            assert world.started() == 3
            await asyncio.sleep(30)
            assert world.started() == 3  # nobody asks, nothing is tried
            again = await world.request()
            assert isinstance(again.error, ReplicaFailed)
            assert world.started() == 4
            await asyncio.sleep(30)
            world.capacity.next_scripts.append(Script())
            healed = await world.request()
            assert healed.error is None
            assert world.load() == 0

    run(main())


def test_a_permanent_failure_is_told_at_once():
    async def main() -> None:
        async with World(script=Script(fails_after=1, failure=BROKEN)) as world:
            await world.deploy()
            outcome = await world.request()
            assert isinstance(outcome.error, ReplicaFailed)
            assert outcome.error.facts["is_permanent"] is True
            assert world.started() == 1

    run(main())


def test_a_minimum_of_one_is_retried_after_the_backoff_without_any_request():
    async def main() -> None:
        async with World() as world:
            world.capacity.next_scripts.extend([Script(fails_after=0, failure=CRASH)] * 4)
            await world.deploy(scaling={"min": 1})
            await world.until(lambda: world.alive() == [READY], seconds=20)
            assert world.started() == 5
            await asyncio.sleep(600)
            assert world.alive() == [READY]

    run(main())


def test_a_ready_replica_crashing_again_and_again_is_a_crash_loop_too():
    async def main() -> None:
        async with World(script=Script(lives_s=0.05)) as world:
            await world.deploy()
            outcome = await world.request(seconds=10)
            assert isinstance(outcome.error, ReplicaFailed)
            assert world.started() == 3

    run(main())


def test_a_minimum_is_kept_when_idle_and_a_minimum_of_zero_after_a_redeploy_is_heeded():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"min": 1, "grace": 1})
            await asyncio.sleep(300)
            assert world.alive() == [READY] and world.started() == 1
            await world.deploy(scaling={"min": 0, "grace": 1})
            await world.until(lambda: not world.alive(), seconds=5)
            await asyncio.sleep(300)
            assert world.started() == 1

    run(main())


def test_a_redeploy_while_the_old_revision_starts_serves_the_old_ones_waiters():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy(scaling={"grace": 60})
            old = world.request()
            await asyncio.sleep(5)
            await world.deploy(scaling={"grace": 50})
            new = world.request()
            outcomes = [await old, await new]
            assert [it.endpoint.revision for it in outcomes if it.endpoint] == ["chat@1", "chat@2"]
            await world.until(
                lambda: world.fleet.of_revision(RevisionName("chat@1")) == (), seconds=5
            )
            assert world.autoscaler.decisions(RevisionName("chat@1")) == ()

    run(main())


def test_a_superseded_revision_that_loads_for_nobody_is_abandoned():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy()
            request = world.request()
            await asyncio.sleep(5)
            request.cancel()
            await world.deploy(scaling={"grace": 50})
            await asyncio.sleep(1.1)
            assert world.alive() == []
            assert world.moves(ReplicaState.STOPPED) != []

    run(main())


def test_a_rollback_to_a_revision_that_still_drains_starts_it_again():
    async def main() -> None:
        async with World(script=Script(drain_s=30)) as world:
            first = await world.deploy(scaling={"grace": 60})
            await world.request()
            await world.deploy(scaling={"grace": 50})
            await asyncio.sleep(2)
            assert world.alive() == [DRAINING]
            again = await world.deploy(scaling={"grace": 60})
            assert again == first
            outcome = await world.request()
            assert outcome.error is None and outcome.endpoint is not None
            assert outcome.endpoint.revision == first.name
            await asyncio.sleep(40)
            assert world.alive() == [READY]

    run(main())


def test_a_delete_while_starting_ends_the_replica_and_tells_the_waiters():
    async def main() -> None:
        async with World(script=SLOW) as world:
            await world.deploy()
            request = world.request()
            await asyncio.sleep(5)
            await world.deployments.delete(ModelName("chat"), now=world.now())
            assert world.alive() == []
            outcome = await request
            assert isinstance(outcome.error, ModelNotFound)
            await asyncio.sleep(60)
            assert world.alive() == [] and world.started() == 1
            assert world.machine().replicas() == ()

    run(main())


def test_a_delete_lets_running_requests_finish():
    async def main() -> None:
        async with World(script=Script(drain_s=5)) as world:
            await world.deploy()
            request = world.request(seconds=3)
            await world.until(lambda: world.alive() == [READY])
            await world.deployments.delete(ModelName("chat"), now=world.now())
            assert world.alive() == [DRAINING]
            outcome = await request
            assert outcome.error is None and outcome.attempts == 1
            await world.until(lambda: not world.alive(), seconds=10)

    run(main())


def test_no_data_never_shrinks():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 5})
            await world.request()
            world.gateway.is_silent = True
            await asyncio.sleep(3600)
            assert world.alive() == [READY]
            world.gateway.is_silent = False
            await world.until(lambda: not world.alive(), seconds=3)

    run(main())


def test_a_replica_too_large_for_every_machine_is_a_typed_refusal_at_once():
    async def main() -> None:
        async with World() as world:
            await world.deploy(resources={"memory_mib": 64 * 1024})
            outcome = await world.request()
            assert isinstance(outcome.error, NoCapacity)
            assert "64.0 GiB" in outcome.error.detail
            assert "16.0 GiB" not in outcome.error.detail  # what a node has is no tenant's affair
            again = await world.request()
            assert isinstance(again.error, NoCapacity)
            await asyncio.sleep(1.1)  # the waiters were told, and left
            explanation = world.explain()
            assert explanation.state is ModelState.FAILING
            assert explanation.reason.startswith("no machine: a replica needs 64.0 GiB")
            assert explanation.desired_replicas == 0

    run(main())


def test_a_node_that_boots_slowly_is_waited_for_and_counted_as_provision():
    async def main() -> None:
        world = World(shape=MachineShape(boot_s=30))
        async with world:
            await world.deploy()
            outcome = await world.request()
            assert outcome.error is None and outcome.endpoint is not None
            first = world.fleet.timings(outcome.endpoint.replica_id)[0]
            assert first.stage is Stage.PROVISION
            assert first.seconds == pytest.approx(30, abs=0.01)

    run(main())


def test_room_is_made_by_the_model_that_idles_longest():
    async def main() -> None:
        async with World() as world:
            needs = {"resources": {"memory_mib": 8 * 1024}, "scaling": {"grace": 3600}}
            for name in ("a", "b", "c"):
                await world.deploy(name, **needs)
            await world.request("a")
            await asyncio.sleep(5)
            await world.request("b")
            await asyncio.sleep(5)
            outcome = await world.request("c")
            assert outcome.error is None and outcome.started_at is not None
            assert outcome.started_at - outcome.arrived_at < 1.5
            assert world.alive("a") == [] and world.alive("b") == [READY]

    run(main())


def test_a_busy_model_keeps_its_room_and_the_other_waits():
    async def main() -> None:
        async with World() as world:
            needs = {"resources": {"memory_mib": 12 * 1024}, "scaling": {"grace": 3600}}
            await world.deploy("a", **needs)
            await world.deploy("b", **needs)
            first = world.request("a", seconds=30)
            await asyncio.sleep(5)
            second = world.request("b")
            await asyncio.sleep(5)
            explanation = world.explain("b")
            assert explanation.state is ModelState.STARTING
            assert "waiting for room" in explanation.reason
            assert (await first).attempts == 1
            assert (await second).error is None

    run(main())


def test_a_replica_that_hangs_while_loading_is_given_up_in_the_end():
    async def main() -> None:
        async with World() as world:
            await world.deploy()
            world.capacity.next_scripts.append(Script(hangs=True, fails_after=1))
            outcome = await world.request()
            assert outcome.error is None and outcome.started_at is not None
            assert 600 < outcome.started_at - outcome.arrived_at < 605

    run(main())


def test_a_drain_that_never_ends_is_ended_at_its_deadline():
    async def main() -> None:
        async with World(script=Script(drain_s=10_000)) as world:
            await world.deploy(scaling={"grace": 1}, timeouts={"execution": 40})
            await world.request()
            await world.until(lambda: world.alive() == [DRAINING])
            await asyncio.sleep(39)
            assert world.alive() == [DRAINING]
            await world.until(lambda: not world.alive(), seconds=8)
            await asyncio.sleep(1)
            assert world.machine().replicas() == ()

    run(main())


def test_hours_of_sparse_traffic_wake_and_sleep_every_time():
    async def main() -> None:
        async with World() as world:
            await world.deploy(scaling={"grace": 20})
            for turn in range(8):
                outcome = await world.request(seconds=1)
                assert outcome.error is None, turn
                await asyncio.sleep(1800)
                assert world.alive() == []
            assert world.started() == 8

    run(main())


def test_replicas_never_exceed_the_maximum_whatever_happens():
    async def main() -> None:
        world = World(shape=MachineShape(fork_s=0.1), most=3)
        peak = 0

        def look(*_: object) -> None:
            nonlocal peak
            alive = world.fleet.of_revision(RevisionName("chat@1"))
            peak = max(peak, sum(it.is_serving_or_loading for it in alive))

        world.fleet.subscribe(look)
        async with world:
            await world.deploy(
                scaling={"max": 4, "target_concurrency": 1, "grace": 5},
                limits={"max_concurrency": 2},
            )
            for wave in range(20):
                requests = [world.request(seconds=0.5) for _ in range(40)]
                await asyncio.sleep(0.4)
                alive = world.fleet.replicas()
                if alive and wave % 3 == 0:
                    machine = world.capacity.machine(alive[0].node_id)
                    machine.crash(alive[0].replica_id)
                outcomes = await asyncio.gather(*requests)
                assert all(it.error is None for it in outcomes)
                await asyncio.sleep(wave)
            assert peak == 4
            await world.until(lambda: not world.alive(), seconds=30)

    run(main())


def test_the_words_for_users():
    async def main() -> None:
        slow = replace(SLOW, stages=(Climbing(Stage.RUNTIME, 1), Climbing(Stage.WEIGHTS, 20, 5)))
        async with World(script=slow) as world:
            assert world.autoscaler.explain(ModelName("chat")) is None
            await world.deploy(scaling={"grace": 10})
            await asyncio.sleep(1)
            assert world.explain().reason == "no request yet, the first one starts it"
            request = world.request()
            await asyncio.sleep(10)
            explanation = world.explain()
            assert explanation.state is ModelState.STARTING
            assert explanation.reason == "1 replica starting: weights 40 %"
            await request
            await asyncio.sleep(3)
            explanation = world.explain()
            assert explanation.reason == "1 replica ready, idle, stops in 7 s"
            await world.until(lambda: not world.alive())
            explanation = world.explain()
            assert explanation.state is ModelState.IDLE
            assert explanation.reason.startswith("idle since ")
            assert explanation.reason.endswith(", next request starts it")

    run(main())
