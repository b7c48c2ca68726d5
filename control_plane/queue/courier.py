"""Tells callers that their jobs are over: signed webhooks, a bounded number of times."""

import asyncio
import random
from collections.abc import Callable

import structlog

from control_plane.queue.job import Job
from control_plane.queue.meters import JobMeters
from control_plane.queue.signature import sign
from control_plane.queue.store import JobStore, WebhookReport
from control_plane.queue.webhook_client import WebhookClient, WebhookFailed
from infra.backoff import Backoff
from infra.clock import Clock
from infra.contracts.base import Contract
from infra.contracts.job import JobStatus
from infra.errors import StoreUnavailable
from infra.supervise import TaskSet

log = structlog.get_logger()

TICK_S = 1.0
MOST_AT_ONCE = 16

_RETRY = Backoff(first_s=5, most_s=3600)
_STORE = Backoff(first_s=0.1, most_s=5)


class WebhookBody(Contract):
    """What is sent: `type` is `job.<state>`."""

    type: str
    timestamp: float
    data: JobStatus


class Courier:
    """Takes what is due from the store; a call counts before it is made."""

    def __init__(
        self,
        store: JobStore,
        client: WebhookClient,
        meters: JobMeters,
        *,
        secret: str,
        clock: Clock,
        is_leading: Callable[[], bool],
    ) -> None:
        self._store = store
        self._client = client
        self._meters = meters
        self._secret = secret
        self._clock = clock
        self._is_leading = is_leading
        self._tasks = TaskSet()
        self._places = asyncio.Semaphore(MOST_AT_ONCE)  # how many calls may be under way
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """A job is over."""
        self._poked.set()

    async def run(self) -> None:
        """Works until cancelled; calls under way then end, and are made again later."""
        failures = 0
        try:
            while True:
                self._poked.clear()
                try:
                    await self._call_what_is_due()
                    failures = 0
                except StoreUnavailable as error:
                    failures += 1
                    log.warning("webhooks.store-unavailable", detail=error.detail)
                except Exception:
                    failures += 1
                    log.exception("webhooks.not-called")
                if failures:
                    await asyncio.sleep(_STORE.delay_s(failures, jitter=random.random()))
                await self._until_poked()
        finally:
            await self._tasks.close()

    async def _call_what_is_due(self) -> None:
        while self._is_leading():
            await self._places.acquire()
            try:
                taken = await self._store.take_webhooks(1, now=self._clock.now())
            except BaseException:
                self._places.release()
                raise
            if not taken:
                self._places.release()
                return
            self._tasks.start(self._call(taken[0]), name=f"webhook {taken[0].job_id}")

    async def _until_poked(self) -> None:
        try:
            async with asyncio.timeout(TICK_S):
                await self._poked.wait()
        except TimeoutError:
            pass

    async def _call(self, job: Job) -> None:
        try:
            webhook = job.webhook
            assert webhook is not None, "it was taken for that"
            number = len(webhook.calls)
            headers, body = self._message(job)
            try:
                status = await self._client.post(webhook.url, headers, body)
                outcome, is_delivered = str(status), 200 <= status < 300
            except WebhookFailed as failed:
                outcome, is_delivered = str(failed)[:200], False
            now = self._clock.now()
            again_s = _RETRY.delay_s(number, jitter=random.random())
            report = WebhookReport(outcome, is_delivered, None if is_delivered else now + again_s)
            self._meters.webhooks.add("delivered" if is_delivered else "failed")
            log.info("webhook.called", job_id=job.job_id, number=number, outcome=outcome)
            await self._settle(job, number, report)
        finally:
            self._places.release()

    async def _settle(self, job: Job, number: int, report: WebhookReport) -> None:
        """An outcome that cannot be stored is forgotten: the call is then made once more."""
        try:
            await self._store.settle_webhook(job.job_id, number, report, now=self._clock.now())
        except StoreUnavailable as error:
            log.warning("webhook.not-settled", job_id=job.job_id, detail=error.detail)

    def _message(self, job: Job) -> tuple[dict[str, str], bytes]:
        now = self._clock.now()
        content = WebhookBody(type=f"job.{job.state.value}", timestamp=now, data=job.status())
        body = content.model_dump_json(exclude_none=True).encode()
        message_id = f"{job.job_id}.{job.attempt}"  # the same for every call of one end
        headers = {
            "content-type": "application/json",
            "user-agent": "firstlight",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": sign(self._secret, message_id, int(now), body),
        }
        return headers, body
