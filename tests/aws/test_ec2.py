"""Machines of EC2 end to end: a request waits, a group gives a machine, its agent registers and a
replica answers; and what becomes of that where AWS refuses, interrupts, loses or forgets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from control_plane.capacity.ec2.build import ec2_capacity
from control_plane.capacity.ec2.provider import Ec2Capacity
from control_plane.capacity.simulated.machine import MachineShape
from infra.contracts.base import NodeId
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung
from infra.errors import NoCapacity, QuotaExceeded, Throttled
from infra.virtual_time import LoopClock
from tests.aws.account import DEPLOYMENT, L4, T4, Account, Inline, account
from tests.aws.agents import Agents
from tests.aws.cloud import Cloud
from tests.fleet.makers import GIB
from tests.fleet.world import Outcome, World, run

SHAPE = MachineShape(cpus=4, memory_bytes=15 * GIB, gpus=1, gpu="l4")
REPLICA_S = 10.0  # what a replica's own climb takes at most here


@dataclass
class Fleet:
    """A control plane whose machines are of EC2."""

    world: World
    cloud: Cloud
    aws: Account
    capacity: Ec2Capacity

    async def deploy(self, **scaling: Any) -> None:
        resources = {"gpus": 1, "gpu": "l4", "memory_mib": 4096}
        await self.world.deploy(resources=resources, scaling={"grace": 60, **scaling})

    async def request(self, *, seconds: float = 0.1) -> Outcome:
        return await self.world.request(seconds=seconds)

    def running(self) -> list[NodeId]:
        return [it.node_id for it in self.capacity.describe() if it.rung is Rung.NODE]

    def standby(self) -> list[NodeId]:
        return [it.node_id for it in self.capacity.describe() if it.rung is Rung.STOPPED]

    async def park_one(self) -> NodeId:
        """One request launches a machine, was worth one in standby, and its machine goes."""
        await self.deploy(cold_penalty=600, grace=5)
        await self.request()
        await self.until(lambda: self.parked() and not self.running(), seconds=300)
        await asyncio.sleep(self.cloud.times.retry_s)
        [parked] = self.parked()
        return parked

    def parked(self) -> list[NodeId]:
        warm = self.cloud.warm("l4")
        return [NodeId(it.instance_id) for it in warm if it.lifecycle_state == "Warmed:Stopped"]

    async def until(self, condition: Callable[[], object], *, seconds: float = 600) -> float:
        return await self.world.until(condition, seconds=seconds, every_s=0.5)


@asynccontextmanager
async def fleet(*groups: dict[str, Any], shape: MachineShape = SHAPE) -> AsyncIterator[Fleet]:
    clock = LoopClock()
    cloud = Cloud(clock.now)
    with account(cloud) as aws:
        for group in groups or ({},):
            aws.add_group(**group)
        capacity = an_adapter(aws)
        async with World(capacity=capacity, standby_machines=1, idle_s=30) as world:
            capacity.subscribe(world.sessions.heard)
            agents = Agents(cloud, aws.clients, world.sessions, clock, shape)
            world.tasks.start(agents.run(), name="agents")
            await capacity.open()
            yield Fleet(world, cloud, aws, capacity)
            await capacity.close()


def an_adapter(aws: Account) -> Ec2Capacity:
    return ec2_capacity(
        DEPLOYMENT,
        clock=LoopClock(),
        queue_url=aws.queue_url,
        clients=aws.clients,
        threads=Inline(),
        poll_s=1,
    )


def waited(outcome: Outcome) -> float:
    assert outcome.error is None and outcome.started_at is not None
    return outcome.started_at - outcome.arrived_at


# -- from zero, through standby, and back ------------------------------------------------------


def test_a_request_at_zero_is_answered_by_an_instance_launched_for_it():
    async def main() -> None:
        async with fleet() as it:
            await it.deploy()
            outcome = await it.request()
            assert it.cloud.times.launch_s < waited(outcome) < it.cloud.times.launch_s + REPLICA_S
            assert outcome.endpoint is not None
            assert outcome.endpoint.node_id == it.running()[0]
            assert "LaunchInstances" in it.cloud.calls
            assert "SetDesiredCapacity" not in it.cloud.calls

    run(main())


def test_a_start_that_needed_a_machine_fills_standby_from_which_the_next_is_answered_sooner():
    async def main() -> None:
        async with fleet() as it:
            waiting = await it.park_one()
            outcome = await it.request()
            assert it.cloud.times.start_s < waited(outcome) < it.cloud.times.start_s + REPLICA_S
            assert it.running() == [waiting]

    run(main())


def test_an_instance_that_idles_goes_back_to_standby_where_nothing_took_its_place():
    async def main() -> None:
        async with fleet() as it:
            waiting = await it.park_one()
            it.cloud.capacity[L4, None] = 1  # so that it starts, and standby is not filled again
            assert (await it.request()).error is None
            await it.until(lambda: it.running() == [], seconds=300)
            await it.until(lambda: waiting in it.parked())
            assert it.cloud.group("l4").desired_capacity == 0

    run(main())


def test_without_launch_instances_desired_capacity_does_it(monkeypatch: pytest.MonkeyPatch):
    async def main() -> None:
        async with fleet() as it:
            monkeypatch.setattr(
                "control_plane.capacity.ec2.launching.Launching._launches_at_once",
                lambda _: False,
            )
            await it.deploy()
            assert waited(await it.request()) < it.cloud.times.launch_s + REPLICA_S
            assert "LaunchInstances" not in it.cloud.calls

    run(main())


# -- what AWS refuses --------------------------------------------------------------------------


def test_where_one_zone_is_out_of_capacity_the_next_one_is_asked_at_once():
    async def main() -> None:
        async with fleet() as it:
            it.cloud.capacity[L4, "us-east-1a"] = 0
            await it.deploy()
            assert waited(await it.request()) < it.cloud.times.launch_s + REPLICA_S
            zones = [member.availability_zone for member in it.cloud.members()]
            assert zones == ["us-east-1b"]

    run(main())


def test_types_and_purchase_options_are_asked_by_price():
    async def main() -> None:
        spot = {"name": "spot", "price": 0.3, "purchase": "spot"}
        large = {"name": "large", "instance_type": "g6.2xlarge", "price": 1.0}
        async with fleet(large, {}, spot) as it:
            it.cloud.fail("LaunchInstances", "MaxSpotInstanceCountExceeded", times=2)
            it.cloud.capacity[L4, None] = 0
            await it.deploy()
            assert (await it.request()).error is None
            groups = [member.auto_scaling_group_name for member in it.cloud.members()]
            assert groups == ["large"]

    run(main())


def test_without_capacity_anywhere_the_request_is_told_what_was_tried():
    async def main() -> None:
        async with fleet() as it:
            it.cloud.capacity[L4, None] = 0
            await it.deploy()
            error = (await it.request()).error
            assert isinstance(error, NoCapacity) and error.facts["retry_after_s"] > 0
            assert "InsufficientInstanceCapacity" in error.detail
            assert it.cloud.calls.count("LaunchInstances") == 2  # one a zone
            it.cloud.capacity.clear()
            await asyncio.sleep(30)
            assert (await it.request()).error is None

    run(main())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("VcpuLimitExceeded", QuotaExceeded),
        ("UnauthorizedOperation", NoCapacity),
        ("InvalidAMIID.NotFound", NoCapacity),
        ("UnfulfillableCapacity", NoCapacity),
    ],
)
def test_a_refusal_reaches_the_request_as_what_it_is(code: str, kind: type[Exception]):
    async def main() -> None:
        async with fleet() as it:
            it.cloud.fail("LaunchInstances", code, f"of {code}: arn:aws:iam::1:role/it", times=100)
            await it.deploy()
            error = (await it.request()).error
            assert type(error) is kind and code in error.detail
            # Whom it refuses is the operator's affair, and stands in the log.
            assert code != "UnauthorizedOperation" or "arn:" not in error.detail

    run(main())


def test_throttled_calls_are_repeated_with_growing_pauses():
    async def main() -> None:
        async with fleet() as it:
            await it.deploy()
            it.cloud.fail("LaunchInstances", "RequestLimitExceeded", times=3)
            outcome = await it.request()
            assert it.cloud.calls.count("LaunchInstances") == 4
            assert it.cloud.times.launch_s + 1.7 < waited(outcome) < it.cloud.times.launch_s + 15
            [replica] = it.world.fleet.replicas()
            assert replica.provision is not None and replica.provision.answered_at is not None
            api_s = replica.provision.answered_at - outcome.arrived_at
            assert 1.7 < api_s <= waited(outcome) - it.cloud.times.launch_s

    run(main())


def test_who_is_throttled_for_long_is_told_so_and_later_served():
    async def main() -> None:
        async with fleet() as it:
            await it.deploy()
            it.cloud.fail("LaunchInstances", "RequestLimitExceeded", times=5)
            error = (await it.request()).error
            assert isinstance(error, Throttled)
            await asyncio.sleep(60)
            assert (await it.request()).error is None

    run(main())


def test_a_stopped_instance_that_cannot_start_gives_way_to_a_new_one():
    async def main() -> None:
        large = {"name": "large", "instance_type": "g6.2xlarge", "price": 1.0}
        async with fleet({}, large) as it:
            await it.park_one()
            it.cloud.capacity[L4, None] = 0
            assert (await it.request()).error is None
            assert it.cloud.group("l4").desired_capacity == 0
            assert len(it.cloud.group("large").instance_states) == 1

    run(main())


def test_a_group_at_its_maximum_is_no_error_of_aws():
    async def main() -> None:
        async with fleet({"most": 0}) as it:
            await it.deploy()
            error = (await it.request()).error
            assert isinstance(error, NoCapacity) and "max_size" in (error.hint or "")

    run(main())


def test_who_asks_for_a_class_that_no_group_has_is_told_which_there_are():
    async def main() -> None:
        async with fleet({"kind": "t4", "instance_type": T4}) as it:
            await it.deploy()
            error = (await it.request()).error
            assert type(error) is NoCapacity and "t4" in (error.hint or "")

    run(main())


# -- what AWS takes away -----------------------------------------------------------------------


@pytest.mark.parametrize("notice", ["interrupt", "recommend_rebalance"])
def test_on_a_notice_another_machine_serves_before_the_replica_drains(notice: str):
    async def main() -> None:
        async with fleet({"purchase": "spot"}) as it:
            await it.deploy(min=1)
            await it.until(lambda: it.world.fleet.ready("chat@1"))
            first = it.running()[0]
            getattr(it.cloud, notice)(first)
            await it.until(lambda: first in it.world.fleet.leaving(), seconds=5)
            assert waited(await it.request()) == 0  # it serves on
            took_s = await it.until(lambda: first not in it.running(), seconds=115)
            assert took_s < it.cloud.times.launch_s + 3 * REPLICA_S
            assert waited(await it.request()) == 0
            assert it.world.fleet.ready("chat@1")[0].node_id != first

    run(main())


def test_an_interrupted_replica_drains_in_time_where_there_is_no_other_machine():
    async def main() -> None:
        async with fleet({"purchase": "spot"}) as it:
            await it.deploy(min=1)
            await it.until(lambda: it.world.fleet.ready("chat@1"))
            first = it.running()[0]
            it.cloud.capacity[L4, None] = 0
            it.cloud.interrupt(first)
            took_s = await it.until(lambda: not it.world.fleet.ready("chat@1"), seconds=120)
            assert 70 < took_s < 80

    run(main())


def test_an_instance_that_its_group_lets_go_serves_until_another_does():
    async def main() -> None:
        async with fleet() as it:
            await it.deploy(min=1)
            await it.until(lambda: it.world.fleet.ready("chat@1"))
            first = it.running()[0]
            it.aws.clients.autoscaling.terminate_instance_in_auto_scaling_group(
                InstanceId=first, ShouldDecrementDesiredCapacity=True
            )
            await it.until(lambda: first not in it.running(), seconds=20)
            assert waited(await it.request()) == 0
            await it.until(lambda: it.world.fleet.ready("chat@1")[0].node_id != first, seconds=60)
            await it.until(lambda: it.world.fleet.node(first) is None)
            assert it.world.moves(ReplicaState.LOST) == []

    run(main())


def test_an_instance_that_ends_by_itself_is_heard_of_at_once_and_not_replaced_by_its_group():
    async def main() -> None:
        async with fleet() as it:
            await it.deploy(grace=5)
            await it.request()
            await it.until(lambda: not it.world.fleet.replicas())
            lost = it.running()[0]
            it.cloud.kill(lost)
            took_s = await it.until(lambda: it.world.fleet.node(lost) is None, seconds=5)
            assert took_s < 3
            await asyncio.sleep(120)
            assert it.cloud.group("l4").desired_capacity == 0
            assert list(it.cloud.members()) == []

    run(main())


def test_without_events_a_look_finds_what_has_ended():
    async def main() -> None:
        async with fleet() as it:
            await it.deploy()
            await it.request()
            lost = it.running()[0]
            it.cloud.fail("ReceiveMessage", "AWS.SimpleQueueService.NonExistentQueue", times=100)
            it.cloud.kill(lost)
            await it.until(lambda: it.world.fleet.node(lost) is None, seconds=20)

    run(main())


# -- what nobody wanted ------------------------------------------------------------------------


def test_desired_capacity_that_somebody_changed_is_set_right():
    async def main() -> None:
        async with fleet() as it:
            await it.deploy(min=1)
            await it.until(lambda: it.world.fleet.ready("chat@1"))
            serving = it.running()
            groups = it.aws.clients.autoscaling
            groups.set_desired_capacity(AutoScalingGroupName="l4", DesiredCapacity=0)
            await it.until(lambda: it.cloud.group("l4").desired_capacity == 1, seconds=60)
            assert it.running() == serving

    run(main())


def test_an_orphan_is_ended_after_its_time_and_nobody_elses_instance_is():
    async def main() -> None:
        async with fleet({}, {"name": "theirs", "deployment": "theirs"}) as it:
            ours = lambda: [m for m in it.cloud.members() if m.auto_scaling_group_name == "l4"]  # noqa: E731
            await it.deploy(min=1)
            await it.until(lambda: it.world.fleet.ready("chat@1"))
            it.aws.clients.autoscaling.set_desired_capacity(
                AutoScalingGroupName="theirs", DesiredCapacity=1
            )
            it.cloud.tick()
            orphan = ours()[0].instance
            it.cloud.group("l4").instance_states.clear()  # let go by a forced delete
            others = [m for m in it.cloud.members() if m.auto_scaling_group_name == "theirs"]
            await it.until(lambda: not orphan.is_running(), seconds=600 + 60)
            assert all(member.instance.is_running() for member in others)

    run(main())


def test_a_control_plane_that_starts_again_finds_its_machines_and_launches_none():
    async def main() -> None:
        async with fleet() as it:
            await it.park_one()
            await it.request()
            before = it.capacity.describe()
            again = an_adapter(it.aws)
            await again.open()
            assert {(m.node_id, m.rung) for m in again.describe()} == {
                (m.node_id, m.rung) for m in before
            }
            await again.close()

    run(main())


def test_an_agent_that_never_gets_ready_loses_its_machine_by_the_hook():
    async def main() -> None:
        async with fleet() as it:
            await it.deploy()
            it.cloud.fail("CompleteLifecycleAction", "Throttling", times=10_000)
            waiting = it.world.request()
            await it.until(lambda: len(list(it.cloud.members())) == 1)
            first = next(it.cloud.members()).instance_id
            await it.until(lambda: first not in it.running(), seconds=400)
            waiting.cancel()

    run(main())
