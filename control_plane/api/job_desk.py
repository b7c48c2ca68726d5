"""Takes in requests that their callers will not wait for, and answers 202 with where to look."""

from collections.abc import Callable

from control_plane.activator.call import Call, Downstream
from control_plane.api.asynchronous import Headers, terms_of, wants_job
from control_plane.queue.acceptance import Order
from control_plane.queue.service import Jobs
from control_plane.queue.store import Accepted
from control_plane.queue.webhook_url import CheckUrl
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
            tenant=call.tenant,
            model=revision.model,
            model_owner=revision.tenant,
            path=call.path,
            request_id=call.request_id,
            body=call.body,
            terms=terms_of(headers, self._check_webhook),
        )

        def told(outcome: Accepted | Exception) -> None:
            if isinstance(outcome, Exception):
                failed(outcome)
            else:
                _answer(client, outcome)

        self._jobs.accept(order, told)


def _answer(client: Downstream, accepted: Accepted) -> None:
    job = accepted.job
    body = job.fresh_status() if accepted.is_new else job.status_json()
    client.start(
        202,
        (
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"location", b"/v1/jobs/%s" % job.job_id.encode("ascii")),
            (b"preference-applied", b"respond-async"),
            (b"firstlight-request-id", job.request_id.encode("ascii")),
        ),
    )
    client.finish(body)
