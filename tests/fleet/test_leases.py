import asyncio

from control_plane.fleet.leases import Leader, Leadership, MemoryLeaderLease, Standing
from infra.errors import StoreUnavailable
from infra.virtual_time import LoopClock, run_virtual


class BrokenLease(MemoryLeaderLease):
    """A lease whose store can be made to fail."""

    is_down = False

    async def acquire(self, owner: str, *, ttl_s: float) -> Leadership | None:
        if self.is_down:
            raise StoreUnavailable("down")
        return await super().acquire(owner, ttl_s=ttl_s)


def test_one_owner_leads_and_another_only_after_the_lease():
    async def main() -> None:
        clock = LoopClock()
        lease = MemoryLeaderLease(clock)
        first = await lease.acquire("a", ttl_s=10)
        assert first == Leadership("a", 1)
        assert await lease.acquire("b", ttl_s=10) is None
        await asyncio.sleep(9)
        assert await lease.acquire("a", ttl_s=10) == first
        await asyncio.sleep(9)
        assert await lease.acquire("b", ttl_s=10) is None
        await asyncio.sleep(2)
        assert await lease.acquire("b", ttl_s=10) == Leadership("b", 2)
        await lease.release(Leadership("a", 1))
        assert await lease.acquire("a", ttl_s=10) is None

    run_virtual(main())


def test_a_leader_renews_and_hands_over_when_it_ends():
    async def main() -> None:
        clock = LoopClock()
        lease = MemoryLeaderLease(clock)
        first, second = (Leader(lease, name, clock=clock) for name in "ab")
        reigns: list[Standing] = []
        first.subscribe(reigns.append)
        runs = [asyncio.create_task(it.run()) for it in (first, second)]
        await asyncio.sleep(300)
        assert (first.standing, second.standing) == (Standing.LEADS, Standing.FOLLOWS)
        assert (first.fence, second.fence) == (1, None)
        runs[0].cancel()
        await asyncio.wait(runs[:1])
        assert not first.is_leading()
        await asyncio.sleep(4)
        assert second.is_leading() and second.fence == 2
        assert reigns == [Standing.LEADS, Standing.DOUBTS]
        assert second.standing is Standing.LEADS
        runs[1].cancel()
        await asyncio.wait(runs)

    run_virtual(main())


def test_a_leader_whose_store_is_silent_steps_down_before_another_can_rise():
    async def main() -> None:
        clock = LoopClock()
        lease = BrokenLease(clock)
        leader = Leader(lease, "a", clock=clock, ttl_s=10)
        run = asyncio.create_task(leader.run())
        await asyncio.sleep(1)
        lease.is_down = True
        await asyncio.sleep(5)
        assert leader.is_leading()
        await asyncio.sleep(5)
        assert leader.standing is Standing.DOUBTS
        lease.is_down = False
        await asyncio.sleep(4)
        assert leader.is_leading() and leader.fence == 1, "nobody else did meanwhile"
        run.cancel()
        await asyncio.wait((run,))

    run_virtual(main())
