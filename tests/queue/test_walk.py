"""Random walks: in Redis as in memory, and the books in order after every step."""

import random
from pathlib import Path
from typing import Any

import pytest

from control_plane.queue.job import Verdict
from control_plane.queue.memory_store import MemoryJobStore
from control_plane.queue.order import Idempotency
from control_plane.queue.redis_store import RedisJobStore, job_function
from control_plane.queue.store import (
    JobStore,
    Policy,
    WebhookReport,
)
from infra.contracts.base import JobId, ModelName
from infra.errors import PlatformError
from infra.redis import EmbeddedRedis, connect
from tests.queue.books import check_books
from tests.queue.makers import HOOK, NOBODY, T0, a_failure, a_job, a_new, an_answer

POLICY = Policy(
    lease_s=30,
    keep_s=120,
    keep_dead_s=240,
    idempotency_s=3600,  # longer than a walk: only Redis knows by its own clock when it is over
    most_reclaims=4,
    most_webhook_calls=3,
    webhook_lease_s=20,
)
MODELS = (ModelName("chat"), ModelName("other"))
OWNERS = ("one", "two")
STEPS = 300


class Walker:
    """Chooses one step after the other, and knows who believes to run what."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._numbers = 0
        self.now = T0
        self.ids: list[JobId] = []
        self.held: dict[str, dict[JobId, int]] = {owner: {} for owner in OWNERS}

    async def step(self, store: JobStore, name: str, seed: int) -> Any:
        """Does one step; the same seed chooses the same."""
        dice = random.Random(seed)
        try:
            return await getattr(self, f"_{name}")(store, dice)
        except PlatformError as error:
            return error.slug

    def begin(self) -> tuple[str, int]:
        """What comes next, and its seed."""
        self.now += self._dice.choice((0, 0.5, 3, 10, 31))
        names = [name[1:] for name in dir(self) if name.startswith("_do_")]
        return self._dice.choice(names), self._dice.randrange(1 << 30)

    async def _do_accept(self, store: JobStore, dice: random.Random) -> Any:
        new = []
        for number in dice.sample(range(1, 13), dice.randrange(1, 4)):
            job = a_job(
                number,
                model=dice.choice(MODELS),
                created_at=self.now,
                updated_at=self.now,
                deadline_at=self.now + dice.choice((20, 200, 2000)),
                webhook=dice.choice((None, HOOK)),
            )
            key = dice.choice((None, Idempotency(f"key-{number % 3}", str(number % 4))))
            if await store.get(job.job_id, tenant=NOBODY) is None:
                new.append(a_new(job, key=key))
        if not new:
            return None
        return [
            outcome.slug if isinstance(outcome, PlatformError) else outcome
            for outcome in await store.accept(new, now=self.now)
        ]

    async def _do_take(self, store: JobStore, dice: random.Random) -> Any:
        owner = dice.choice(OWNERS)
        taken = await store.take(
            dice.choice(MODELS), dice.randrange(1, 4), owner=owner, now=self.now
        )
        if dice.random() < 0.9:  # else it never hears of them
            self.held[owner] |= {it.job.job_id: it.job.attempt for it in taken}
        return taken

    async def _do_finish(self, store: JobStore, dice: random.Random) -> Any:
        job_id, attempt = self._some_attempt(dice)
        stored = dice.random() < 0.3
        body = b"" if stored else b"answer"
        answer = an_answer(b"answer", is_stored=stored)
        return await store.finish(job_id, attempt, answer, body, now=self.now)

    async def _do_fail(self, store: JobStore, dice: random.Random) -> Any:
        job_id, attempt = self._some_attempt(dice)
        failure = a_failure(dice.choice(list(Verdict)), retry_at=self.now + dice.choice((0, 7)))
        return await store.fail(job_id, attempt, failure, now=self.now)

    async def _do_renew(self, store: JobStore, dice: random.Random) -> Any:
        owner = dice.choice(OWNERS)
        if dice.random() < 0.2:  # it died, and comes back knowing nothing
            self.held[owner] = {}
        lost = await store.renew(owner, self.held[owner], now=self.now)
        self.held[owner] = {it: n for it, n in self.held[owner].items() if it not in lost}
        return lost

    async def _do_reclaim(self, store: JobStore, dice: random.Random) -> Any:
        return set(await store.reclaim(now=self.now))

    async def _do_expire(self, store: JobStore, dice: random.Random) -> Any:
        return set(await store.expire(now=self.now))

    async def _do_forget(self, store: JobStore, dice: random.Random) -> Any:
        found = {job.job_id for job in await store.forgettable(now=self.now)}
        await store.forget(tuple(found))
        return found

    async def _do_cancel(self, store: JobStore, dice: random.Random) -> Any:
        return await store.cancel(self._some_id(dice), tenant=NOBODY, now=self.now)

    async def _do_redrive(self, store: JobStore, dice: random.Random) -> Any:
        return await store.redrive(
            self._some_id(dice), tenant=NOBODY, deadline_at=self.now + 100, now=self.now
        )

    async def _do_webhook(self, store: JobStore, dice: random.Random) -> Any:
        taken = sorted(await store.take_webhooks(9, now=self.now), key=lambda job: job.job_id)
        for job in taken:
            assert job.webhook is not None
            delivered = dice.random() < 0.5
            report = WebhookReport("x", delivered, None if delivered else self.now + 5)
            if dice.random() < 0.7:
                await store.settle_webhook(job.job_id, len(job.webhook.calls), report, now=self.now)
        return taken

    def _some_id(self, dice: random.Random) -> JobId:
        return a_job(dice.randrange(1, 13)).job_id

    def _some_attempt(self, dice: random.Random) -> tuple[JobId, int]:
        held = [pair for owner in OWNERS for pair in self.held[owner].items()]
        return dice.choice(held) if held else (self._some_id(dice), 1)


async def everything(store: JobStore) -> Any:
    jobs = [await store.get(a_job(number).job_id, tenant=NOBODY) for number in range(1, 13)]
    answers = [await store.answer(a_job(n).job_id, tenant=NOBODY) for n in range(1, 13)]
    page = await store.page(tenant=NOBODY, model=None, state=None, after=None, count=100)
    assert [job for job in reversed(jobs) if job is not None] == list(page.jobs)
    return jobs, answers, dict(await store.counts()), sorted(await store.backlog())


@pytest.mark.real
@pytest.mark.parametrize("seed", range(6))
async def test_both_stores_go_the_same_way(seed: int, tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        function, redis = job_function(server.url, POLICY), connect(server.url)
        stores: list[JobStore] = [MemoryJobStore(POLICY), RedisJobStore(function, POLICY)]
        ours, theirs = Walker(random.Random(seed)), Walker(random.Random(seed))
        for number in range(STEPS):
            name, step_seed = ours.begin()
            assert theirs.begin() == (name, step_seed)
            seen = [
                await walker.step(store, name, step_seed)
                for walker, store in zip((ours, theirs), stores, strict=True)
            ]
            assert seen[0] == seen[1], f"step {number}: {name}"
            states = [await everything(store) for store in stores]
            assert states[0] == states[1], f"after step {number}: {name}"
            await check_books(redis, [job for job in states[1][0] if job is not None])
        await function.close()
        await redis.aclose()
