"""What every JobStore does; the one that is told failed does each step twice."""

from dataclasses import replace

import pytest

from control_plane.queue.job import MOVES, Job, Verdict
from control_plane.queue.order import Idempotency, NewJob
from control_plane.queue.store import (
    JOB_BYTES,
    Backlog,
    JobStore,
    Page,
    Policy,
    Taken,
    WebhookReport,
)
from infra.contracts.base import JobId, ModelName
from infra.contracts.job import JobState, WebhookCall
from infra.contracts.tenancy import TenantName
from infra.errors import IdempotencyKeyReused, JobsFull
from tests.queue.conftest import MakeStore
from tests.queue.makers import (
    BODY,
    CHAT,
    HOOK,
    NOBODY,
    PROBLEM,
    T0,
    a_failure,
    a_job,
    accept,
    an_answer,
)

ME, OTHER = "me", "other"
US, THEM = TenantName("us"), TenantName("them")
KEY = Idempotency("key", "print")


async def accepted(store: JobStore, job: Job | None = None, *, now: float = T0) -> Job:
    job = job or a_job()
    assert isinstance(await accept(store, job, now=now), NewJob)
    return job


async def running(store: JobStore, job: Job | None = None, *, now: float = T0) -> Job:
    job = await accepted(store, job, now=now)
    await store.take(job.model, 1, owner=ME, now=now)
    return await known(store, job.job_id, job.tenant)


async def known(store: JobStore, job_id: JobId, tenant: TenantName = NOBODY) -> Job:
    job = await store.get(job_id, tenant=tenant)
    assert job is not None
    return job


async def state_of(store: JobStore, job: Job) -> JobState:
    return (await known(store, job.job_id, job.tenant)).state


async def counted(store: JobStore) -> dict[JobState, int]:
    return {state: count for (_, state), count in (await store.counts()).items() if count}


# -- accepting -----------------------------------------------------------------------------------


async def test_an_accepted_job_is_kept_as_it_was_given(store: JobStore):
    job = await accepted(store, a_job(webhook=HOOK))
    assert await store.get(job.job_id, tenant=NOBODY) == job
    assert await store.backlog() == (Backlog(CHAT, 1, T0),)
    assert await counted(store) == {JobState.QUEUED: 1}


async def test_a_job_that_is_accepted_twice_is_one(store: JobStore):
    await accepted(store)
    await accepted(store)
    assert await counted(store) == {JobState.QUEUED: 1}


async def test_a_known_key_gives_the_job_it_was_used_for(store: JobStore):
    await accept(store, a_job(1), key=KEY)
    await store.take(CHAT, 1, owner=ME, now=T0)
    again = await accept(store, a_job(2), key=KEY, now=T0 + 1)
    assert again == await known(store, a_job(1).job_id)
    assert await store.get(a_job(2).job_id, tenant=NOBODY) is None


async def test_a_key_used_for_something_else_is_refused_and_changes_nothing(store: JobStore):
    await accept(store, a_job(1), key=KEY)
    with pytest.raises(IdempotencyKeyReused) as refusal:
        await accept(store, a_job(2), key=KEY._replace(fingerprint="x"))
    assert refusal.value.facts["job_id"] == a_job(1).job_id
    assert await counted(store) == {JobState.QUEUED: 1}


async def test_keys_of_tenants_do_not_mix(store: JobStore):
    await accept(store, a_job(1), key=KEY)
    other = await accept(store, a_job(2, tenant=THEM), key=KEY)
    assert isinstance(other, NewJob)


async def test_a_job_with_a_key_outlives_its_key(make_store: MakeStore):
    store = make_store(Policy(keep_s=10, idempotency_s=3600))
    await accept(store, a_job(), key=KEY)
    await store.cancel(a_job().job_id, tenant=NOBODY, now=T0)
    assert (await known(store, a_job().job_id)).kept_until == T0 + 3600


async def test_bytes_are_bounded_and_given_back(make_store: MakeStore):
    store = make_store(Policy(most_bytes=2 * (JOB_BYTES + len(BODY))))
    for number in (1, 2):
        await accepted(store, a_job(number))
    with pytest.raises(JobsFull):
        await accepted(store, a_job(3))
    await store.cancel(a_job(1).job_id, tenant=NOBODY, now=T0)
    await store.forget((a_job(1).job_id,))
    await accepted(store, a_job(3))
    with pytest.raises(JobsFull):
        await accepted(store, a_job(4))


# -- executing -----------------------------------------------------------------------------------


async def test_jobs_are_taken_oldest_first_with_their_bodies(told_truly: JobStore):
    store = told_truly
    for number in (1, 2, 3):
        await accepted(store, a_job(number), now=T0 + number)
    first = await store.take(CHAT, 2, owner=ME, now=T0 + 9)
    second = await store.take(CHAT, 2, owner=ME, now=T0 + 9)
    changes = {"state": JobState.RUNNING, "owner": ME, "attempt": 1}
    times = {"started_at": T0 + 9, "updated_at": T0 + 9}
    assert first == tuple(Taken(replace(a_job(n), **changes, **times), BODY) for n in (1, 2))
    assert [it.job.job_id for it in second] == [a_job(3).job_id]


async def test_a_take_that_nobody_heard_of_is_undone_by_the_next_renewal(store: JobStore):
    job = await running(store)
    await store.renew(ME, {}, now=T0)
    assert await state_of(store, job) is JobState.QUEUED


async def test_of_a_taken_job_the_first_answer_wins_and_stays(store: JobStore):
    job = await running(store)
    assert await store.finish(job.job_id, 1, an_answer(), b"ok", now=T0 + 2)
    assert not await store.finish(job.job_id, 2, an_answer(), b"late", now=T0 + 3)
    assert await store.finish(job.job_id, 1, an_answer(), b"ok", now=T0 + 3), "it was told failed"
    assert await store.answer(job.job_id, tenant=NOBODY) == b"ok"
    finished = await known(store, job.job_id)
    assert finished == replace(
        job,
        state=JobState.SUCCEEDED,
        winner=1,
        answer=an_answer(),
        updated_at=T0 + 2,
        finished_at=T0 + 2,
        kept_until=T0 + 2 + store.policy.keep_s,
    )
    assert await counted(store) == {JobState.SUCCEEDED: 1}


async def test_a_failure_is_retried_when_it_is_due_and_counted_once(store: JobStore):
    job = await running(store)
    failure = a_failure(retry_at=T0 + 60)
    assert await store.fail(job.job_id, 1, failure, now=T0) is JobState.QUEUED
    assert await store.fail(job.job_id, 1, failure, now=T0) is JobState.QUEUED
    assert await store.take(CHAT, 1, owner=ME, now=T0 + 59) == ()
    waiting = await known(store, job.job_id)
    assert (waiting.failures, waiting.problem) == (1, PROBLEM)
    await store.take(CHAT, 1, owner=ME, now=T0 + 60)
    assert (await known(store, job.job_id)).attempt == 2


async def test_as_many_failures_as_allowed_make_a_dead_letter(store: JobStore):
    job = await accepted(store)
    for attempt in (1, 2, 3):
        await store.take(CHAT, 1, owner=ME, now=T0)
        await store.fail(job.job_id, attempt, a_failure(), now=T0)
    dead = await known(store, job.job_id)
    assert (dead.state, dead.is_dead_letter, dead.failures) == (JobState.FAILED, True, 3)
    assert dead.kept_until == T0 + store.policy.keep_dead_s


async def test_a_postponed_execution_does_not_count(store: JobStore):
    job = await running(store)
    await store.fail(job.job_id, 1, a_failure(Verdict.POSTPONE), now=T0)
    waiting = await known(store, job.job_id)
    assert (waiting.state, waiting.failures) == (JobState.QUEUED, 0)


async def test_what_cannot_succeed_fails_at_once_and_is_no_dead_letter(store: JobStore):
    job = await running(store)
    assert await store.fail(job.job_id, 1, a_failure(Verdict.GIVE_UP), now=T0) is JobState.FAILED
    assert not (await known(store, job.job_id)).is_dead_letter


async def test_a_redriven_job_has_all_its_attempts_again(store: JobStore):
    job = await running(store, a_job(max_attempts=1, webhook=HOOK))
    await store.fail(job.job_id, 1, a_failure(), now=T0)
    await store.take_webhooks(1, now=T0)
    redriven = await store.redrive(job.job_id, tenant=NOBODY, deadline_at=T0 + 99, now=T0 + 5)
    assert redriven is not None
    assert (redriven.state, redriven.failures, redriven.deadline_at) == (
        JobState.QUEUED,
        0,
        T0 + 99,
    )
    assert redriven.webhook is not None and redriven.webhook.calls == ()
    assert redriven.problem is None and not redriven.is_dead_letter
    await store.take(CHAT, 1, owner=ME, now=T0 + 5)
    assert await store.finish(job.job_id, 2, an_answer(), b"", now=T0 + 6)
    assert await counted(store) == {JobState.SUCCEEDED: 1}


async def test_only_failed_jobs_are_redriven(store: JobStore):
    job = await running(store)
    await store.finish(job.job_id, 1, an_answer(), b"", now=T0)
    before = await known(store, job.job_id)
    assert await store.redrive(job.job_id, tenant=NOBODY, deadline_at=T0 + 99, now=T0) == before


async def test_cancelling_ends_a_queued_or_running_job_and_nothing_else(store: JobStore):
    queued, started = await accepted(store, a_job(2), now=T0 + 1), await running(store, a_job(1))
    for job in (queued, started):
        cancelled = await store.cancel(job.job_id, tenant=NOBODY, now=T0 + 5)
        assert cancelled is not None and cancelled.state is JobState.CANCELLED
    assert not await store.finish(started.job_id, 1, an_answer(), b"ok", now=T0 + 6)
    assert await store.fail(started.job_id, 1, a_failure(), now=T0 + 6) is None
    assert await store.take(CHAT, 9, owner=ME, now=T0 + 6) == ()
    assert await counted(store) == {JobState.CANCELLED: 2}
    assert await store.backlog() == ()


# -- leases --------------------------------------------------------------------------------------


async def test_an_owner_that_renews_keeps_its_jobs(store: JobStore):
    job = await running(store)
    for tick in range(10):
        at = T0 + tick * store.policy.lease_s / 2
        assert await store.renew(ME, {job.job_id: 1}, now=at) == frozenset()
        assert await store.reclaim(now=at) == ()


async def test_a_dead_owners_job_is_queued_again_and_its_late_answer_is_the_first(store: JobStore):
    job = await running(store)
    late = T0 + store.policy.lease_s
    assert await store.reclaim(now=late - 1) == ()
    await store.reclaim(now=late)
    assert await state_of(store, job) is JobState.QUEUED
    await store.take(CHAT, 1, owner=OTHER, now=late)
    assert (await known(store, job.job_id)).attempt == 2
    # both owners run it now: the one that was thought dead answers first
    assert await store.finish(job.job_id, 1, an_answer(b"a"), b"a", now=late)
    assert not await store.finish(job.job_id, 2, an_answer(b"b"), b"b", now=late)
    assert await store.answer(job.job_id, tenant=NOBODY) == b"a"
    assert await store.renew(OTHER, {job.job_id: 2}, now=late) == {job.job_id}
    assert await counted(store) == {JobState.SUCCEEDED: 1}


async def test_an_answer_may_come_while_the_job_waits_for_its_second_execution(store: JobStore):
    job = await running(store)
    await store.reclaim(now=T0 + store.policy.lease_s)
    assert await store.finish(job.job_id, 1, an_answer(), b"ok", now=T0 + 99)
    assert await store.take(CHAT, 1, owner=OTHER, now=T0 + 99) == ()
    assert await store.backlog() == ()


async def test_a_slow_owner_gets_back_what_nobody_has_taken_since(store: JobStore):
    job = await running(store)
    late = T0 + store.policy.lease_s
    await store.reclaim(now=late)
    assert await store.renew(ME, {job.job_id: 1}, now=late) == frozenset()
    held = await known(store, job.job_id)
    assert (held.state, held.attempt, held.owner) == (JobState.RUNNING, 1, ME)
    assert await store.take(CHAT, 1, owner=OTHER, now=late) == ()


async def test_a_slow_owner_loses_what_another_has_taken(store: JobStore):
    job = await running(store)
    late = T0 + store.policy.lease_s
    await store.reclaim(now=late)
    await store.take(CHAT, 1, owner=OTHER, now=late)
    assert await store.renew(ME, {job.job_id: 1}, now=late) == {job.job_id}
    assert (await known(store, job.job_id)).owner == OTHER


async def test_a_failure_that_was_noted_is_not_resumed_by_a_renewal(store: JobStore):
    job = await running(store)
    await store.fail(job.job_id, 1, a_failure(retry_at=T0 + 5), now=T0)
    assert await store.renew(ME, {job.job_id: 1}, now=T0 + 1) == {job.job_id}
    assert await state_of(store, job) is JobState.QUEUED


async def test_what_its_owner_does_not_know_of_is_queued_again(store: JobStore):
    lost, held = await running(store, a_job(1)), await running(store, a_job(2))
    assert await store.renew(ME, {held.job_id: 1}, now=T0 + 1) == frozenset()
    assert await state_of(store, lost) is JobState.QUEUED
    assert await state_of(store, held) is JobState.RUNNING


async def test_a_lease_from_a_clock_that_was_set_back_does_not_last(store: JobStore):
    job = await running(store, now=T0)
    await store.reclaim(now=T0 - 3600)
    assert await state_of(store, job) is JobState.QUEUED


async def test_a_job_whose_consumers_keep_dying_is_a_dead_letter(make_store: MakeStore):
    store = make_store(Policy(most_reclaims=2))
    job = await accepted(store)
    for _ in range(2):
        await store.take(CHAT, 1, owner=ME, now=T0)
        await store.renew(ME, {}, now=T0)
    dead = await known(store, job.job_id)
    assert (dead.state, dead.is_dead_letter) == (JobState.FAILED, True)
    assert dead.problem is not None and b"job-abandoned" in dead.problem


# -- time ----------------------------------------------------------------------------------------


async def test_a_job_expires_at_its_deadline_waiting_or_running(store: JobStore):
    waiting, started = await accepted(store, a_job(2), now=T0 + 1), await running(store, a_job(1))
    assert await store.expire(now=T0 + 3599) == ()
    await store.expire(now=T0 + 3600)
    assert await state_of(store, waiting) is JobState.EXPIRED
    assert await state_of(store, started) is JobState.EXPIRED  # and still there: RunPod's was a 404
    assert not await store.finish(started.job_id, 1, an_answer(), b"ok", now=T0 + 3601)
    assert await store.backlog() == ()


async def test_a_job_that_is_due_after_its_deadline_is_not_taken(store: JobStore):
    job = await accepted(store)
    assert await store.take(CHAT, 1, owner=ME, now=T0 + 3600) == ()
    assert await state_of(store, job) is JobState.EXPIRED


async def test_jobs_are_forgotten_when_they_were_kept_long_enough(store: JobStore):
    job = await running(store)
    await store.finish(job.job_id, 1, an_answer(), b"ok", now=T0)
    kept_until = T0 + store.policy.keep_s
    assert await store.forgettable(now=kept_until - 1) == ()
    assert [it.job_id for it in await store.forgettable(now=kept_until)] == [job.job_id]
    await store.forget((job.job_id,))
    assert await store.get(job.job_id, tenant=NOBODY) is None
    assert await store.answer(job.job_id, tenant=NOBODY) is None
    assert await counted(store) == {}
    assert await store.page(tenant=NOBODY, model=None, state=None, after=None, count=9) == Page(
        (), None
    )


async def test_a_job_that_was_redriven_meanwhile_is_not_forgotten(store: JobStore):
    job = await running(store)
    await store.fail(job.job_id, 1, a_failure(Verdict.GIVE_UP), now=T0)
    await store.redrive(job.job_id, tenant=NOBODY, deadline_at=T0 + 9, now=T0)
    await store.forget((job.job_id,))
    assert await state_of(store, job) is JobState.QUEUED


# -- looking -------------------------------------------------------------------------------------


async def test_a_job_of_another_tenant_is_as_one_that_is_not_there(store: JobStore):
    job = await running(store, a_job(tenant=US))
    assert await store.get(job.job_id, tenant=THEM) is None
    assert await store.cancel(job.job_id, tenant=THEM, now=T0) is None
    assert await store.redrive(job.job_id, tenant=THEM, deadline_at=T0, now=T0) is None
    await store.finish(job.job_id, 1, an_answer(), b"secret", now=T0)
    assert await store.answer(job.job_id, tenant=THEM) is None
    page = await store.page(tenant=THEM, model=None, state=None, after=None, count=9)
    assert page == Page((), None)


async def test_to_who_asks_for_no_tenant_everybodys_jobs_are_there(store: JobStore):
    job = await running(store, a_job(tenant=US))
    assert await store.get(job.job_id, tenant=None) == job
    await store.finish(job.job_id, 1, an_answer(), b"told", now=T0)
    assert await store.answer(job.job_id, tenant=None) == b"told"
    other = await accepted(store, a_job(2, tenant=THEM))
    ended = await store.cancel(other.job_id, tenant=None, now=T0)
    assert ended is not None and ended.state is JobState.CANCELLED
    again = await store.redrive(other.job_id, tenant=None, deadline_at=T0, now=T0)
    assert again is not None and again.state is JobState.CANCELLED, "found, and no failed one"
    assert await store.get(a_job(3).job_id, tenant=None) is None


async def test_pages_go_from_new_to_old_and_meet_every_job_once(store: JobStore):
    for number in range(1, 8):
        model = ModelName("other") if number % 2 else CHAT
        await accepted(store, a_job(number, model=model))
    seen: list[JobId] = []
    after: JobId | None = None
    while True:
        page = await store.page(tenant=NOBODY, model=None, state=None, after=after, count=3)
        seen += [job.job_id for job in page.jobs]
        after = page.next
        if after is None:
            break
    assert seen == [a_job(number).job_id for number in range(7, 0, -1)]


async def test_pages_are_filtered_by_model_and_state(store: JobStore):
    for number in range(1, 5):
        await accepted(store, a_job(number), now=T0 + number)
    await accepted(store, a_job(9, model=ModelName("other")))
    await store.cancel(a_job(2).job_id, tenant=NOBODY, now=T0)
    page = await store.page(tenant=NOBODY, model=CHAT, state=JobState.QUEUED, after=None, count=9)
    assert [job.job_id for job in page.jobs] == [a_job(number).job_id for number in (4, 3, 1)]


# -- webhooks ------------------------------------------------------------------------------------


async def test_a_webhook_is_due_when_the_job_is_over(store: JobStore):
    job = await running(store, a_job(webhook=HOOK))
    assert await store.take_webhooks(9, now=T0) == ()
    await store.finish(job.job_id, 1, an_answer(), b"", now=T0)
    await store.take_webhooks(9, now=T0 + 1)
    told = (await known(store, job.job_id)).webhook
    assert told is not None and told.calls == (WebhookCall(at=T0 + 1, outcome="no word of it"),)
    await store.settle_webhook(
        job.job_id, 1, WebhookReport("200", is_delivered=True, retry_at=None), now=T0 + 2
    )
    told = (await known(store, job.job_id)).webhook
    assert told is not None
    assert told.is_delivered and told.due_at is None
    assert told.calls == (WebhookCall(at=T0 + 2, outcome="200"),)
    assert await store.take_webhooks(9, now=T0 + 9999) == ()


async def test_calls_of_a_webhook_are_bounded_however_they_end(make_store: MakeStore):
    store = make_store(Policy(most_webhook_calls=3, webhook_lease_s=10))
    job = await running(store, a_job(webhook=HOOK))
    await store.finish(job.job_id, 1, an_answer(), b"", now=T0)
    for tick in range(20):  # half of them die without a word
        at = T0 + tick * 10
        for taken in await store.take_webhooks(9, now=at):
            assert taken.webhook is not None
            number = len(taken.webhook.calls)
            if number % 2:
                report = WebhookReport("503", is_delivered=False, retry_at=at + 5)
                await store.settle_webhook(job.job_id, number, report, now=at)
    told = (await known(store, job.job_id)).webhook
    assert told is not None
    assert (len(told.calls), told.due_at, told.is_delivered) == (3, None, False)


# -- the table -----------------------------------------------------------------------------------


def test_an_end_is_an_end_but_for_the_redrive_of_what_failed():
    ends = [state for state in JobState if state.is_over]
    assert {state: MOVES[state] for state in ends} == {
        JobState.SUCCEEDED: frozenset(),
        JobState.FAILED: frozenset({JobState.QUEUED}),
        JobState.CANCELLED: frozenset(),
        JobState.EXPIRED: frozenset(),
    }


def test_every_state_can_be_reached_from_queued():
    reached = {JobState.QUEUED}
    for _ in JobState:
        reached |= {to for state in reached for to in MOVES[state]}
    assert reached == set(JobState)
