"""Executes jobs the way requests are served: held, woken for, given a permit, relayed."""

from control_plane.activator.activator import Activator
from control_plane.activator.answers import problem_of
from control_plane.activator.call import Call, TokenCount
from control_plane.activator.kept_answer import KeptAnswer
from control_plane.activator.lines import Lines
from control_plane.deployments.service import Deployments
from control_plane.queue.executor import Answered, Failed
from control_plane.queue.job import Job, Verdict
from control_plane.queue.room import room_for_jobs
from infra.clock import Clock
from infra.contracts.base import ModelName
from infra.errors import (
    AnswerTooLarge,
    ColdStartTimeout,
    ModelNotFound,
    NoCapacity,
    PlatformError,
    QueueFull,
    QueueTimeout,
    ReplicaFailed,
    ShuttingDown,
)

MOST_ANSWER_BYTES = 64 << 20

# The job never reached a replica: that is no fault of its.
_NOT_EXECUTED = (
    ColdStartTimeout,
    NoCapacity,
    QueueFull,
    QueueTimeout,
    ReplicaFailed,
    ShuttingDown,
)
_TOO_MANY = 429


class JobExecutor:
    """The Executor over this process's activator; a job's revision is picked at its start."""

    def __init__(
        self, deployments: Deployments, lines: Lines, activator: Activator, clock: Clock
    ) -> None:
        self._deployments = deployments
        self._lines = lines
        self._activator = activator
        self._clock = clock

    def room(self, model: ModelName, running: int) -> int:
        if self._activator.is_stopping:
            return 0
        release = self._deployments.release(model)
        revisions = () if release is None else release.revisions
        permits = sum(self._lines.permits(revision) for revision in revisions)
        demand = self._lines.demand_of(model)
        return room_for_jobs(permits=permits, concurrency=demand.concurrency, running=running)

    async def run(self, job: Job, body: bytes) -> Answered | Failed:
        revision = self._deployments.pick(job.model)
        if revision is None or revision.tenant != job.model_owner:
            return _failed(ModelNotFound(f"no model {job.model} is deployed", model=job.model))
        tokens = TokenCount()
        client = KeptAnswer(most_bytes=MOST_ANSWER_BYTES)
        call = Call(
            request_id=job.request_id,
            path=job.path,
            body=body,
            is_streaming=False,
            wants_progress=False,
            arrived_at=self._clock.now(),
            tenant=job.tenant,
            tokens=tokens,
        )
        try:
            await client.whole(self._activator.begin(call, revision, client))
        except PlatformError as error:
            return _failed(error)
        return _outcome(client, tokens)


def _failed(error: PlatformError) -> Failed:
    if isinstance(error, _NOT_EXECUTED):
        is_stopping = isinstance(error, ShuttingDown)
        return Failed(Verdict.POSTPONE, error.problem(), is_stopping=is_stopping)
    will_fail_again = error.status < 500 or isinstance(error, AnswerTooLarge)
    return Failed(Verdict.GIVE_UP if will_fail_again else Verdict.RETRY, error.problem())


def _outcome(client: KeptAnswer, tokens: TokenCount) -> Answered | Failed:
    if client.status < 400:
        content_type = client.headers.get(b"content-type", b"application/octet-stream")
        return Answered(
            client.status,
            content_type.decode("latin-1"),
            client.body,
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
        )
    problem = problem_of(client.status, client.body)
    may_pass = client.status >= 500 or client.status == _TOO_MANY
    return Failed(Verdict.RETRY if may_pass else Verdict.GIVE_UP, problem)
