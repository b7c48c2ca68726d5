"""Takes in requests that their callers will not wait for, and answers 202 with where to look."""

from collections.abc import Callable

from control_plane.activator.call import Call, Downstream
from control_plane.api.asynchronous import Headers, terms_of, wants_job
from control_plane.queue.job import Job
from control_plane.queue.order import NewJob, Order
from control_plane.queue.service import Jobs
from control_plane.queue.webhook_url import CheckUrl
from infra.contracts.base import JobId, RequestId
from infra.contracts.revision import Revision
from infra.errors import Invalid


class JobDesk:
    """One for all hot routes: they check a request in the same way, whoever waits for it."""

    def __init__(self, jobs: Jobs, check_webhook: CheckUrl) -> None:
        self._jobs = jobs
        self._check_webhook = check_webhook

    def wants_job(self, headers: Headers) -> bool:
        """Whether this is such a request."""
        return wants_job(headers)

    def accept(
        self,
        call: Call,
        revision: Revision,
        headers: Headers,
        client: Downstream,
        failed: Callable[[Exception], None],
    ) -> None:
        """Answers 202 once the job is on disk, or says why it is not: JobsFull, StoreUnavailable,
        IdempotencyKeyReused. Raises Invalid."""
        if call.is_streaming:
            raise Invalid(
                "a job's answer cannot be a stream", hint="leave stream out", param="stream"
            )
        order = Order(
            call.tenant,
            revision.model,
            revision.tenant,
            call.path,
            call.request_id,
            call.body,
            terms_of(headers, self._check_webhook),
        )

        def told(outcome: NewJob | Job | Exception) -> None:
            if isinstance(outcome, Exception):
                failed(outcome)
            elif isinstance(outcome, NewJob):
                _answer(client, outcome.job_id, outcome.order.request_id, outcome.status_json())
            else:
                _answer(client, outcome.job_id, outcome.request_id, outcome.status_json())

        self._jobs.accept(order, told)


def _answer(client: Downstream, job_id: JobId, request_id: RequestId, body: bytes) -> None:
    client.start(
        202,
        (
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"location", b"/v1/jobs/%s" % job_id.encode("ascii")),
            (b"preference-applied", b"respond-async"),
            (b"firstlight-request-id", request_id.encode("ascii")),
        ),
    )
    client.finish(body)
