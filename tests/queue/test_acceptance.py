"""Orders become jobs, those that come together in one call of the store, each told its own end."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import orjson
import pytest

from control_plane.queue.acceptance import (
    MOST_AT_ONCE,
    MOST_BYTES_AT_ONCE,
    MOST_CALLS,
    Acceptance,
)
from control_plane.queue.job import Job
from control_plane.queue.memory_store import MemoryJobStore
from control_plane.queue.order import Idempotency, NewJob, Order, Terms
from control_plane.queue.store import JOB_BYTES, JobStore, Outcome, Policy
from infra.contracts.base import ModelName, RequestId
from infra.contracts.job import JobState
from infra.errors import IdempotencyKeyReused, JobsFull, StoreUnavailable
from infra.virtual_time import EPOCH, LoopClock, run_virtual
from tests.queue.conftest import MakeStore
from tests.queue.makers import BODY, CHAT, HOOK, NOBODY, T0, a_job, a_new

CALL_S = 0.01
OTHER = ModelName("other")


class Slow(MemoryJobStore):
    """Remembers what came in each call; the first ones may fail."""

    def __init__(self, policy: Policy = Policy(), *, failures: int = 0) -> None:  # noqa: B008
        super().__init__(policy)
        self.calls: list[int] = []
        self.failures = failures

    async def accept(self, new: Sequence[NewJob], *, now: float) -> tuple[Outcome, ...]:
        self.calls.append(len(new))
        await asyncio.sleep(CALL_S)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        return await super().accept(new, now=now)


class Desk:
    """Orders, and what became of each, in the order in which it was told."""

    def __init__(self, store: JobStore) -> None:
        self.told: list[tuple[int, NewJob | Job | Exception]] = []
        self.waits: list[ModelName] = []
        self.acceptance = Acceptance(store, clock=LoopClock(), waits=self.waits.append)

    def order(self, number: int, *, key: str | None = None, body: bytes = BODY) -> None:
        terms = Terms(deadline_s=60, max_attempts=3, idempotency_key=key)
        request_id = RequestId(f"req_{number}")
        order = Order(NOBODY, CHAT, NOBODY, "/invoke", request_id, body, terms)
        self.acceptance.accept(order, lambda outcome: self.told.append((number, outcome)))

    def errors(self) -> list[type]:
        return [type(outcome) for _, outcome in self.told if isinstance(outcome, Exception)]


def test_what_comes_while_calls_are_under_way_goes_together_into_the_next_one() -> None:
    async def main() -> None:
        store = Slow()
        desk = Desk(store)
        for number in range(3):
            desk.order(number)
        for number in range(3, 10):
            await asyncio.sleep(CALL_S / 10)
            desk.order(number)
        await asyncio.sleep(3 * CALL_S)

        assert store.calls == [3, 3, 4], "two at a time, the second once it takes as many"
        assert [number for number, _ in desk.told] == list(range(10))
        assert all(isinstance(it, NewJob) for _, it in desk.told)
        assert desk.waits == [CHAT] * 3, "once a call"
        assert (await store.counts()) == {(CHAT, JobState.QUEUED): 10}

    run_virtual(main())


def test_no_call_takes_more_than_so_many() -> None:
    async def main() -> None:
        store = Slow()
        desk = Desk(store)
        for number in range(2 * MOST_AT_ONCE + 1):
            desk.order(number)
        await asyncio.sleep(4 * CALL_S)
        assert store.calls == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
        assert len(desk.told) == 2 * MOST_AT_ONCE + 1

    run_virtual(main())


def test_no_call_takes_more_bytes_than_so_many_but_for_one_body_that_has_more() -> None:
    async def main() -> None:
        store = Slow()
        desk = Desk(store)
        half = b"x" * (MOST_BYTES_AT_ONCE // 2)
        for number, body in enumerate((half, half, BODY, 3 * half, BODY, BODY)):
            desk.order(number, body=body)
        await asyncio.sleep(3 * CALL_S)
        assert store.calls == [2, 1, 1, 2]
        assert [number for number, _ in desk.told] == list(range(6))

    run_virtual(main())


def test_two_calls_are_under_way_when_more_came_at_once_than_one_takes() -> None:
    async def main() -> None:
        store = Slow()
        desk = Desk(store)
        for number in range(2 * MOST_AT_ONCE):
            desk.order(number)
        await asyncio.sleep(1.5 * CALL_S)
        assert store.calls == [MOST_AT_ONCE] * MOST_CALLS
        assert len(desk.told) == 2 * MOST_AT_ONCE

    run_virtual(main())


def test_while_the_store_is_away_whoever_came_is_told_and_the_next_one_is_accepted() -> None:
    async def main() -> None:
        store = Slow(failures=MOST_CALLS)
        desk = Desk(store)
        for number in range(MOST_CALLS + 3):
            desk.order(number)
            await asyncio.sleep(CALL_S / 10)
        await asyncio.sleep(2 * CALL_S)
        assert desk.errors() == [StoreUnavailable] * (MOST_CALLS + 3)
        assert store.calls == [1] * MOST_CALLS, "who came meanwhile has waited as long"
        desk.order(9)
        await asyncio.sleep(2 * CALL_S)
        assert isinstance(desk.told[-1][1], NewJob)

    run_virtual(main())


def test_who_is_told_that_the_store_is_away_is_told_how_to_send_the_job_again() -> None:
    async def main() -> None:
        desk = Desk(Slow(failures=1))
        desk.order(1, key="a")
        desk.order(2)
        await asyncio.sleep(2 * CALL_S)

        hints = [
            outcome.hint or "" for _, outcome in desk.told if isinstance(outcome, StoreUnavailable)
        ]
        assert ["with the same Idempotency-Key" in hint for hint in hints] == [True, False]
        assert "an Idempotency-Key" in hints[1]

    run_virtual(main())


def test_each_of_those_that_came_together_is_told_its_own_end() -> None:
    async def main() -> None:
        desk = Desk(Slow(Policy(most_bytes=3 * (JOB_BYTES + len(BODY)))))
        desk.order(1, key="a")
        desk.order(2, key="a")  # the same again
        desk.order(3, key="a", body=b"{}")
        desk.order(4)
        desk.order(5)
        desk.order(6)
        await asyncio.sleep(2 * CALL_S)

        outcomes = dict(desk.told)
        first, again = outcomes[1], outcomes[2]
        assert isinstance(first, NewJob)
        assert again == first.job()
        assert isinstance(outcomes[3], IdempotencyKeyReused)
        assert isinstance(outcomes[4], NewJob) and isinstance(outcomes[5], NewJob)
        assert isinstance(outcomes[6], JobsFull)

    run_virtual(main())


def test_one_that_cannot_be_told_keeps_nobody_else_from_it() -> None:
    async def main() -> None:
        desk = Desk(Slow())
        terms = Terms(deadline_s=60, max_attempts=3)

        def broken(outcome: NewJob | Job | Exception) -> None:
            raise KeyError("a defect")

        order = Order(NOBODY, CHAT, NOBODY, "/invoke", RequestId("req_0"), BODY, terms)
        desk.acceptance.accept(order, broken)
        desk.order(1)
        await asyncio.sleep(2 * CALL_S)
        assert [number for number, _ in desk.told] == [1]

    run_virtual(main())


async def test_every_store_accepts_many_as_it_does_one(make_store: MakeStore) -> None:
    store = make_store(Policy(most_bytes=4 * (JOB_BYTES + len(BODY))))
    key = Idempotency("key", "print")
    jobs = [
        a_job(1),
        a_job(2, webhook=HOOK),
        a_job(3, model=OTHER),
        a_job(4),
        a_job(5),
        a_job(6),
        a_job(7),
    ]
    keys = {4: key, 5: key, 6: key._replace(fingerprint="another")}

    new = [a_new(job, key=keys.get(number)) for number, job in enumerate(jobs, 1)]
    outcomes = await store.accept(new, now=T0)

    assert list(outcomes[:4]) == new[:4]
    assert outcomes[4] == replace(jobs[3], is_idempotent=True)
    assert isinstance(outcomes[5], IdempotencyKeyReused)
    assert isinstance(outcomes[6], JobsFull)
    kept = [await store.get(job.job_id, tenant=NOBODY) for job in jobs]
    assert kept == [*jobs[:3], replace(jobs[3], is_idempotent=True), None, None, None]
    assert await store.counts() == {(CHAT, JobState.QUEUED): 3, (OTHER, JobState.QUEUED): 1}


@pytest.mark.parametrize("webhook", [None, HOOK])
def test_what_is_said_of_a_fresh_job_is_its_status(webhook: str | None) -> None:
    new = a_new(a_job(webhook=webhook, created_at=EPOCH + 0.123))
    assert orjson.loads(new.status_json()) == orjson.loads(new.job().status_json())
