"""What somebody asks for who does not wait for it, until it is a job."""

from typing import NamedTuple

import orjson

from control_plane.queue.job import Job, Webhook
from infra.contracts.base import JobId, ModelName, RequestId
from infra.contracts.tenancy import TenantName


class Terms(NamedTuple):
    """What a caller asks beside the request itself."""

    deadline_s: float
    max_attempts: int
    webhook_url: str | None = None
    idempotency_key: str | None = None


class Order(NamedTuple):
    """A valid request that its caller does not wait for; `path` is the replica's."""

    tenant: TenantName
    model: ModelName
    model_owner: TenantName
    path: str
    request_id: RequestId
    body: bytes
    terms: Terms


class Idempotency(NamedTuple):
    """The caller's key as a digest, and a digest of all that has to be the same."""

    key: str
    fingerprint: str


class NewJob(NamedTuple):
    """An order under the id that it is kept by; `created_at` is in whole milliseconds."""

    job_id: JobId
    created_at: float
    order: Order
    idempotency: Idempotency | None = None

    @property
    def deadline_at(self) -> float:
        return self.created_at + self.order.terms.deadline_s

    def job(self) -> Job:
        """The job that it is from now on."""
        order, terms = self.order, self.order.terms
        return Job(
            job_id=self.job_id,
            tenant=order.tenant,
            model=order.model,
            model_owner=order.model_owner,
            path=order.path,
            request_id=order.request_id,
            created_at=self.created_at,
            updated_at=self.created_at,
            deadline_at=self.deadline_at,
            max_attempts=terms.max_attempts,
            is_idempotent=self.idempotency is not None,
            webhook=None if terms.webhook_url is None else Webhook(terms.webhook_url),
        )

    def status_json(self) -> bytes:
        """What the job's own says, at a tenth of the cost."""
        order, terms = self.order, self.order.terms
        status: dict[str, object] = {
            "id": self.job_id,
            "object": "job",
            "model": order.model,
            "state": "queued",
            "request_id": order.request_id,
            "created_at": self.created_at,
            "updated_at": self.created_at,
            "deadline_at": self.deadline_at,
            "attempts": 0,
            "failures": 0,
            "max_attempts": terms.max_attempts,
            "is_dead_letter": False,
        }
        if terms.webhook_url is not None:
            status["webhook"] = {"url": terms.webhook_url, "state": "waiting", "calls": ()}
        return orjson.dumps(status)
