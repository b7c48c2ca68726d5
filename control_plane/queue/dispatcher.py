"""Takes jobs as fast as they may run, keeps their leases while they do, and settles them."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from control_plane.queue.answers import Answers
from control_plane.queue.executor import Answered, Executor, Failed
from control_plane.queue.job import Job, Verdict
from control_plane.queue.meters import JobMeters
from control_plane.queue.store import Failure, JobStore, Taken
from infra.backoff import Backoff
from infra.clock import Clock
from infra.contracts.base import JobId, ModelName
from infra.contracts.job import JobState
from infra.errors import PlatformError, StoreUnavailable
from infra.supervise import TaskSet

log = structlog.get_logger()

AnsweredListener = Callable[[Job, Answered], None]

TICK_S = 1.0  # between renewals, and between looks at what others may have queued
MOST_AT_ONCE = 64

_RETRY = Backoff(first_s=1, most_s=120)
_POSTPONED = Backoff(first_s=1, most_s=30)
_STORE = Backoff(first_s=0.05, most_s=2)


@dataclass(frozen=True, slots=True)
class _Execution:
    job: Job
    task: "asyncio.Task[None]"


class Dispatcher:
    """The consumer of this process; the only one that starts executions here."""

    def __init__(
        self,
        store: JobStore,
        answers: Answers,
        executor: Executor,
        meters: JobMeters,
        *,
        owner: str,
        clock: Clock,
        is_leading: Callable[[], bool],
    ) -> None:
        self._store = store
        self._answers = answers
        self._executor = executor
        self._meters = meters
        self._owner = owner
        self._clock = clock
        self._is_leading = is_leading
        self._executions: dict[JobId, _Execution] = {}
        self._running: Counter[ModelName] = Counter()  # tasks that have not ended
        self._tasks = TaskSet()
        self._poked = asyncio.Event()
        self._next_tick = 0.0
        self._over_listeners: list[Callable[[], None]] = []
        self._answered_listeners: list[AnsweredListener] = []
        self.counts: Mapping[tuple[ModelName, JobState], int] = {}

    def poke(self) -> None:
        """There may be a job to take, or room for one."""
        self._poked.set()

    def waits(self, model: ModelName) -> None:
        """A job of the model has come; where there is no room for it, the store is not asked."""
        if not self._poked.is_set() and self._executor.room(model, self._running[model]) > 0:
            self._poked.set()

    def abort(self, job_id: JobId) -> None:
        """The job was ended: so is its execution, if it is ours."""
        execution = self._executions.pop(job_id, None)
        if execution is not None:
            execution.task.cancel()

    def subscribe_over(self, listener: Callable[[], None]) -> None:
        """Calls back after a job ended here."""
        self._over_listeners.append(listener)

    def subscribe_answered(self, listener: AnsweredListener) -> None:
        """Calls back when an execution's answer became the job's."""
        self._answered_listeners.append(listener)

    async def run(self) -> None:
        """Works until cancelled; executions then end, and are taken up when the next process
        of this owner begins, or their leases end."""
        failures, wait_s = 0, 0.0
        try:
            while True:
                try:
                    wait_s = await self._step()
                    failures = 0
                except StoreUnavailable as error:
                    failures += 1
                    log.warning("jobs.store-unavailable", detail=error.detail, failures=failures)
                except Exception:
                    failures += 1
                    log.exception("jobs.step-failed", failures=failures)
                if failures:
                    await asyncio.sleep(_delay_s(_STORE, failures))
                else:
                    await self._until_poked(wait_s)
        finally:
            await self._tasks.close()

    # -- one step ------------------------------------------------------------------------------

    async def _step(self) -> float:
        """Whatever is due; returns the seconds until something is."""
        self._poked.clear()
        now = self._clock.now()
        if now >= self._next_tick:
            await self._keep_house()
            self._next_tick = now + TICK_S
        due_at = await self._take() if self._is_leading() else self._next_tick
        return max(0.0, min(due_at, self._next_tick) - self._clock.now())

    async def _keep_house(self) -> None:
        """Renews before it reclaims: what a stall of ours let lapse is ours again first."""
        held = {job_id: it.job.attempt for job_id, it in self._executions.items()}
        for job_id in await self._store.renew(self._owner, held, now=self._clock.now()):
            await self._give_up(job_id)
        if not self._is_leading():
            return
        now = self._clock.now()
        for job_id in await self._store.reclaim(now=now):
            log.warning("job.reclaimed", job_id=job_id)
        for job_id in await self._store.expire(now=now):
            log.info("job.expired", job_id=job_id)
            self.abort(job_id)
            self._tell_over()
        await self._forget(now)
        self.counts = await self._store.counts()

    async def _forget(self, now: float) -> None:
        """Jobs whose answers cannot be dropped now are kept, and keep nobody waiting."""
        forgotten = []
        for job in await self._store.forgettable(now=now):
            try:
                await self._answers.forget(job)
            except StoreUnavailable as error:
                log.warning("job.answer-not-dropped", job_id=job.job_id, detail=error.detail)
                break
            forgotten.append(job.job_id)
        if forgotten:
            await self._store.forget(tuple(forgotten))

    async def _take(self) -> float:
        """Starts what may run; returns when the first of the others is due."""
        now = self._clock.now()
        next_due = float("inf")
        for model, waiting, due_at in await self._store.backlog():
            if due_at > now:
                next_due = min(next_due, due_at)
                continue
            room = self._executor.room(model, self._running[model])
            wanted = min(room, waiting, MOST_AT_ONCE)
            if wanted <= 0:
                continue
            for taken in await self._store.take(model, wanted, owner=self._owner, now=now):
                self._start(taken)
        return next_due

    async def _until_poked(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._poked.wait()
        except TimeoutError:
            pass

    # -- executions ----------------------------------------------------------------------------

    def _start(self, taken: Taken) -> None:
        job = taken.job
        self.abort(job.job_id)  # an older attempt of ours that was given up for dead
        task = self._tasks.start(self._execute(taken), name=f"job {job.job_id}")
        self._executions[job.job_id] = _Execution(job, task)
        self._running[job.model] += 1
        task.add_done_callback(lambda _: self._ended(job.model))
        log.info("job.started", job_id=job.job_id, model=job.model, attempt=job.attempt)

    def _ended(self, model: ModelName) -> None:
        self._running[model] -= 1
        self.poke()

    async def _execute(self, taken: Taken) -> None:
        job = taken.job
        try:
            outcome = await self._outcome(taken)
            if outcome is not None:
                await self._settle(job, outcome)
        finally:
            execution = self._executions.get(job.job_id)
            if execution is not None and execution.job.attempt == job.attempt:
                del self._executions[job.job_id]

    async def _outcome(self, taken: Taken) -> Answered | Failed | None:
        """None where the job's deadline came first."""
        job = taken.job
        left = asyncio.timeout(max(0.0, job.deadline_at - self._clock.now()))
        try:
            async with left:
                return await self._executor.run(job, taken.body)
        except TimeoutError:
            if left.expired():
                self._next_tick = 0.0
                return None
            raise
        except Exception:
            log.exception("job.execution-failed", job_id=job.job_id, model=job.model)
            error = PlatformError("the platform failed at this job; its log says why")
            return Failed(Verdict.RETRY, error.problem())

    async def _settle(self, job: Job, outcome: Answered | Failed) -> None:
        """Tells the store, for as long as it takes: the lease is renewed meanwhile."""
        failures = 0
        while True:
            try:
                await self._settle_once(job, outcome)
                return
            except StoreUnavailable as error:
                failures += 1
                log.warning("job.not-settled", job_id=job.job_id, detail=error.detail)
                await asyncio.sleep(_delay_s(_STORE, failures))

    async def _settle_once(self, job: Job, outcome: Answered | Failed) -> None:
        now = self._clock.now()
        state: JobState | None
        if isinstance(outcome, Answered):
            is_ours = await self._answers.keep(job, outcome, now=now)
            state = JobState.SUCCEEDED if is_ours else None
        else:
            failure = self._failure(job, outcome, now)
            state = await self._store.fail(job.job_id, job.attempt, failure, now=now)
        if state is None:
            await self._note_duplicate(job)
            return
        result = "answered"
        if isinstance(outcome, Answered):
            for listener in self._answered_listeners:
                listener(job, outcome)
        else:
            result = outcome.verdict.value
        self._meters.executions.add(job.model, result)
        log.info("job.settled", job_id=job.job_id, attempt=job.attempt, state=state.value)
        if state.is_over:
            self._tell_over()

    def _failure(self, job: Job, failed: Failed, now: float) -> Failure:
        problem = failed.problem.model_dump_json(exclude_none=True).encode()
        if failed.is_stopping:
            return Failure(failed.verdict, problem, now)
        if failed.verdict is Verdict.POSTPONE:
            delay_s = _delay_s(_POSTPONED, job.attempt - job.failures)
        else:
            delay_s = _delay_s(_RETRY, job.failures + 1)
        return Failure(failed.verdict, problem, now + delay_s)

    async def _give_up(self, job_id: JobId) -> None:
        """A renewal says that the execution is no longer ours."""
        execution = self._executions.get(job_id)
        if execution is not None:
            self.abort(job_id)
            await self._note_duplicate(execution.job)

    async def _note_duplicate(self, job: Job) -> None:
        """Counts an execution that was one too many; not one that was cancelled or expired."""
        current = await self._store.get(job.job_id, tenant=job.tenant)
        if current is None or current.state in {JobState.CANCELLED, JobState.EXPIRED}:
            return
        if current.attempt != job.attempt or current.winner not in {0, job.attempt}:
            self._meters.duplicates.add(job.model)
            log.warning("job.duplicate", job_id=job.job_id, attempt=job.attempt)

    def _tell_over(self) -> None:
        for listener in self._over_listeners:
            listener()


def _delay_s(backoff: Backoff, failures: int) -> float:
    return backoff.delay_s(max(1, failures), jitter=random.random())
