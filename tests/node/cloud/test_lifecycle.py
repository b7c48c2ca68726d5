import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from infra.virtual_time import run_virtual
from worker.node.cloud.fake_cloud import FakeCloud
from worker.node.cloud.lifecycle import HEARTBEAT_S, Lifecycle
from worker.node.cloud.port import Hook, Notice, Target


@dataclass
class Work:
    """An agent that is as far as a test says."""

    is_warm: bool = False
    is_serving: bool = False
    is_idle: bool = False
    did: list[str] = field(default_factory=list)
    announced: list[Notice] = field(default_factory=list)

    def warm(self) -> None:
        self.did.append("warm")

    def serve(self) -> None:
        self.did.append("serve")

    def announce(self, notice: Notice) -> None:
        self.announced.append(notice)

    async def leave(self) -> None:
        self.did.append("leave")


def simulate(cloud: FakeCloud, story: Callable[[Work], Awaitable[None]]) -> Work:
    """The lifecycle of a machine of a group, beside a story, in virtual time."""
    work = Work()

    async def main() -> None:
        life = asyncio.create_task(Lifecycle(cloud, cloud, work).run())
        try:
            async with asyncio.timeout(36_000):
                await story(work)
        finally:
            life.cancel()
            await asyncio.wait({life})

    run_virtual(main())
    return work


def test_a_machine_that_boots_to_warm_does_not_join_and_says_when_it_is_warm():
    cloud = FakeCloud(goes_to=Target.WARM)

    async def story(work: Work) -> None:
        await asyncio.sleep(1000)
        assert cloud.completed == []
        work.is_warm = True
        await asyncio.sleep(2)

    work = simulate(cloud, story)

    assert work.did == ["warm"]
    assert cloud.completed == [Hook.LAUNCHING]
    assert len(cloud.heartbeats) >= 1000 // HEARTBEAT_S - 1


def test_a_machine_that_boots_to_serve_is_launched_once_the_control_plane_knows_it():
    cloud = FakeCloud(goes_to=Target.SERVE)

    async def story(work: Work) -> None:
        await asyncio.sleep(500)
        assert (work.did, cloud.completed) == (["serve"], [])
        work.is_serving = True
        await asyncio.sleep(2)

    simulate(cloud, story)

    assert cloud.completed == [Hook.LAUNCHING]


def test_a_running_machine_of_the_pool_serves_when_its_group_takes_it():
    cloud = FakeCloud(goes_to=Target.WARM)

    async def story(work: Work) -> None:
        work.is_warm = work.is_serving = True
        await asyncio.sleep(5)
        cloud.goes_to, cloud.waits_for = Target.SERVE, Hook.LAUNCHING
        await asyncio.sleep(5)

    work = simulate(cloud, story)

    assert work.did == ["warm", "serve"]
    assert cloud.completed == [Hook.LAUNCHING, Hook.LAUNCHING]


def test_a_machine_that_is_taken_out_drains_says_goodbye_and_then_lets_itself_be_ended():
    cloud = FakeCloud(goes_to=Target.SERVE)

    async def story(work: Work) -> None:
        work.is_serving = True
        await asyncio.sleep(5)
        cloud.goes_to, cloud.waits_for = Target.LEAVE, Hook.TERMINATING
        await asyncio.sleep(200)
        assert [it.reason for it in work.announced] == ["its group takes it out of service"]
        assert "leave" not in work.did
        work.is_idle = True
        await asyncio.sleep(5)

    work = simulate(cloud, story)

    assert work.did == ["serve", "leave"]
    assert cloud.completed == [Hook.LAUNCHING, Hook.TERMINATING]
    assert Hook.TERMINATING in cloud.heartbeats


def test_a_machine_that_goes_back_to_the_pool_is_warmed_again():
    cloud = FakeCloud(goes_to=Target.SERVE)

    async def story(work: Work) -> None:
        work.is_serving = work.is_idle = work.is_warm = True
        await asyncio.sleep(5)
        cloud.goes_to, cloud.waits_for = Target.WARM, Hook.TERMINATING
        await asyncio.sleep(5)
        cloud.waits_for = Hook.LAUNCHING
        await asyncio.sleep(20)

    work = simulate(cloud, story)

    assert work.did == ["serve", "leave", "warm"]
    assert cloud.completed == [Hook.LAUNCHING, Hook.TERMINATING, Hook.LAUNCHING]


def test_a_group_that_does_not_wait_yet_is_told_again():
    cloud = FakeCloud(goes_to=Target.SERVE, waits_for=None)

    async def story(work: Work) -> None:
        work.is_serving = True
        await asyncio.sleep(30)
        cloud.waits_for = Hook.LAUNCHING
        await asyncio.sleep(10)

    simulate(cloud, story)

    assert cloud.completed == [Hook.LAUNCHING]


def test_a_group_that_cannot_be_told_is_told_later():
    cloud = FakeCloud(goes_to=Target.SERVE)

    async def story(work: Work) -> None:
        await asyncio.sleep(5)
        cloud.is_down, work.is_serving = True, True
        await asyncio.sleep(3000)
        cloud.is_down = False
        await asyncio.sleep(10)

    work = simulate(cloud, story)

    assert cloud.completed == [Hook.LAUNCHING]
    assert work.did == ["serve"], "no metadata are no reason to leave"


def test_notices_are_passed_on_once_each():
    cloud = FakeCloud()

    async def story(work: Work) -> None:
        cloud.noticed = Notice("spot rebalance recommendation")
        await asyncio.sleep(30)
        cloud.noticed = Notice("spot interruption: terminate", at=1234.0)
        await asyncio.sleep(30)

    work = simulate(cloud, story)

    assert [it.at for it in work.announced] == [None, 1234.0]


def test_a_machine_whose_group_says_nothing_serves():
    cloud = FakeCloud(goes_to=None, waits_for=None)

    async def story(work: Work) -> None:
        await asyncio.sleep(60)

    assert simulate(cloud, story).did == ["serve"]


def test_a_machine_that_is_to_leave_at_once_never_joins():
    cloud = FakeCloud(goes_to=Target.LEAVE)

    async def story(work: Work) -> None:
        await asyncio.sleep(60)

    assert simulate(cloud, story).did == []
