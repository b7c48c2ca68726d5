"""Every error this platform raises on purpose.

* PlatformError
  - Invalid: MalformedJson, SpecInvalid, ContextLengthExceeded, BodyTooLarge, UnsupportedModel,
    SourceInvalid, ImageInvalid
  - Unauthorized
  - NotFound: ModelNotFound, RevisionNotFound, JobNotFound
  - Conflict: IdempotencyKeyReused, JobNotOver, JobOver
  - JobWithoutAnswer
  - QueueFull: JobsFull
  - ColdStartTimeout, QueueTimeout, ExecutionTimeout
  - ClientTooSlow
  - ReplicaLost, ReplicaFailed, ReplicaOutOfMemory, ImageUnavailable, JobAbandoned, AnswerTooLarge
  - NoCapacity: QuotaExceeded
  - ProviderUnavailable: Throttled
  - BadSpec
  - SourceUnavailable: WeightsUnavailable (WeightsDamaged)
  - StoreUnavailable, NotLeader, ShuttingDown
  - DependencyMissing
"""

from http import HTTPStatus
from typing import Any, ClassVar

from infra.contracts.problem import OpenAIError, Problem


class PlatformError(Exception):
    """Base class: `slug` and `status` are the kind's, `detail` and `facts` the occurrence's."""

    slug: ClassVar[str] = "internal"
    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    openai_type: ClassVar[str] = "server_error"

    def __init__(
        self, detail: str, *, hint: str | None = None, param: str | None = None, **facts: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.param = param
        self.facts = facts

    def problem(self, instance: str | None = None) -> Problem:
        """This occurrence as an RFC 9457 body; `instance` is the request's path."""
        return Problem(
            type=f"/problems/{self.slug}",
            title=self.slug.replace("-", " ").capitalize(),
            status=self.status.value,
            detail=self.detail,
            instance=instance,
            hint=self.hint,
            error=OpenAIError(
                message=self.detail,
                type=self.openai_type,
                param=self.param,
                code=self.slug.replace("-", "_"),
            ),
            **self.facts,
        )

    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error."""
        retry_after_s = self.facts.get("retry_after_s")
        return {} if retry_after_s is None else {"Retry-After": str(max(1, round(retry_after_s)))}


class Invalid(PlatformError):
    """The caller's input is wrong; the same call will fail again."""

    slug = "invalid-request"
    status = HTTPStatus.BAD_REQUEST
    openai_type = "invalid_request_error"


class MalformedJson(Invalid):
    """The body is not JSON as RFC 8259 has it, or nests too deep."""

    slug = "malformed-json"


class SpecInvalid(Invalid):
    """`model.yaml` has problems; `errors` lists all of them."""

    slug = "spec-invalid"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class ContextLengthExceeded(Invalid):
    """Prompt and output do not fit the model's context."""

    slug = "context-length-exceeded"


class BodyTooLarge(Invalid):
    """The request's body is larger than the model's limit."""

    slug = "body-too-large"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedModel(Invalid):
    """The model's files describe something this engine cannot run."""

    slug = "unsupported-model"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class SourceInvalid(Invalid):
    """The model's source exists and its files are missing, malformed or unsafe."""

    slug = "source-invalid"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class ImageInvalid(Invalid):
    """The image, its index or a chunk table is malformed or unsafe."""

    slug = "image-invalid"
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class SourceChanged(SourceInvalid):
    """The source has other bytes than when the model was deployed, and those are not served."""

    slug = "source-changed"


class Unauthorized(PlatformError):
    """The API key is missing or wrong."""

    slug = "unauthorized"
    status = HTTPStatus.UNAUTHORIZED
    openai_type = "authentication_error"


class Forbidden(PlatformError):
    """The API key is valid and does not allow this."""

    slug = "forbidden"
    status = HTTPStatus.FORBIDDEN
    openai_type = "permission_error"


class NotFound(PlatformError):
    """There is nothing at this address."""

    slug = "not-found"
    status = HTTPStatus.NOT_FOUND
    openai_type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No model of that name is deployed."""

    slug = "model-not-found"


class RevisionNotFound(NotFound):
    """The model has no such revision, or no longer."""

    slug = "revision-not-found"


class JobNotFound(NotFound):
    """No job of that id is kept."""

    slug = "job-not-found"


class MethodNotAllowed(PlatformError):
    """The address exists, the method does not."""

    slug = "method-not-allowed"
    status = HTTPStatus.METHOD_NOT_ALLOWED
    openai_type = "invalid_request_error"


class Conflict(PlatformError):
    """Somebody changed the same thing at the same time."""

    slug = "conflict"
    status = HTTPStatus.CONFLICT
    openai_type = "invalid_request_error"


class IdempotencyKeyReused(Conflict):
    """The `Idempotency-Key` was used for another request."""

    slug = "idempotency-key-reused"


class JobNotOver(Conflict):
    """The job has no result yet."""

    slug = "job-not-over"


class JobOver(Conflict):
    """The job ended in a way that cannot be changed."""

    slug = "job-over"


class JobWithoutAnswer(PlatformError):
    """The job was cancelled or expired, so there will be no answer."""

    slug = "job-without-answer"
    status = HTTPStatus.GONE
    openai_type = "invalid_request_error"


class QueueFull(PlatformError):
    """The model holds as many requests as it may; back off and try again."""

    slug = "queue-full"
    status = HTTPStatus.TOO_MANY_REQUESTS
    openai_type = "rate_limit_error"


class JobsFull(QueueFull):
    """As many bytes of jobs are kept as may be; back off and try again."""

    slug = "jobs-full"


class RateLimited(PlatformError):
    """The tenant has used up what it may do a minute or at a time; try again later."""

    slug = "rate-limited"
    status = HTTPStatus.TOO_MANY_REQUESTS
    openai_type = "rate_limit_error"


class ColdStartTimeout(PlatformError):
    """No replica became ready before the request's cold-start deadline."""

    slug = "cold-start-timeout"
    status = HTTPStatus.GATEWAY_TIMEOUT


class QueueTimeout(PlatformError):
    """Replicas were ready and busy until the request's queue deadline."""

    slug = "queue-timeout"
    status = HTTPStatus.GATEWAY_TIMEOUT


class ExecutionTimeout(PlatformError):
    """The replica did not finish within the execution deadline."""

    slug = "execution-timeout"
    status = HTTPStatus.GATEWAY_TIMEOUT


class ClientTooSlow(PlatformError):
    """The client reads so much slower than the model writes that its stream was ended."""

    slug = "client-too-slow"
    status = HTTPStatus.REQUEST_TIMEOUT


class ReplicaLost(PlatformError):
    """The replica that served the request died."""

    slug = "replica-lost"
    status = HTTPStatus.BAD_GATEWAY


class ReplicaFailed(PlatformError):
    """Replicas of this revision cannot start; the detail says why and on which node."""

    slug = "replica-failed"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class ReplicaOutOfMemory(PlatformError):
    """The replica used more memory than `resources.memory_mib` gives it, and was killed."""

    slug = "replica-out-of-memory"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class NoCapacity(PlatformError):
    """No machine that fits can be had now."""

    slug = "no-capacity"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class QuotaExceeded(NoCapacity):
    """The account may not have more such machines; its quota has to be raised."""

    slug = "quota-exceeded"


class ProviderUnavailable(PlatformError):
    """Where machines come from does not answer; nothing is known of what was asked for."""

    slug = "provider-unavailable"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class Throttled(ProviderUnavailable):
    """Where machines come from is asked too often; it is left alone for a while."""

    slug = "provider-throttled"


class BadSpec(PlatformError):
    """Where machines come from refuses what it is asked for, and would again."""

    slug = "machine-refused"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class JobAbandoned(PlatformError):
    """Processes that ran the job died so often that it is taken for the cause."""

    slug = "job-abandoned"
    status = HTTPStatus.BAD_GATEWAY


class AnswerTooLarge(PlatformError):
    """The model's answer is larger than the answer of a job may be."""

    slug = "answer-too-large"
    status = HTTPStatus.BAD_GATEWAY


class SourceUnavailable(PlatformError):
    """The model's source cannot be reached or refuses us."""

    slug = "source-unavailable"
    status = HTTPStatus.BAD_GATEWAY


class WeightsUnavailable(SourceUnavailable):
    """The model's weights could not be downloaded, however often they were asked for."""

    slug = "weights-unavailable"


class WeightsDamaged(WeightsUnavailable):
    """The model's weights arrived whole, and are not what was deployed."""

    slug = "weights-damaged"


class ImageUnavailable(PlatformError):
    """The image that workers run cannot be had from its registry, or cannot be run."""

    slug = "image-unavailable"
    status = HTTPStatus.BAD_GATEWAY


class StoreUnavailable(PlatformError):
    """The state store does not answer; whether a change was made is found out by repeating it."""

    slug = "store-unavailable"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class NotLeader(PlatformError):
    """Another control plane leads, or this one is just taking over; send the request there."""

    slug = "not-leader"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class ShuttingDown(PlatformError):
    """The platform is stopping."""

    slug = "shutting-down"
    status = HTTPStatus.SERVICE_UNAVAILABLE


class DependencyMissing(PlatformError):
    """An optional part of the installation is needed; the hint says which."""

    slug = "dependency-missing"
    status = HTTPStatus.NOT_IMPLEMENTED
