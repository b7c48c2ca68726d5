"""The port through which a job is executed, and what comes of it."""

from typing import NamedTuple, Protocol

from control_plane.queue.job import Job, Verdict
from infra.contracts.base import ModelName
from infra.contracts.problem import Problem


class Answered(NamedTuple):
    """The model's answer, whole."""

    status: int
    content_type: str
    body: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Failed(NamedTuple):
    """There is no answer, why, and what follows from that."""

    verdict: Verdict
    problem: Problem
    is_stopping: bool = False  # only because this process ends: others may run it at once


class Executor(Protocol):
    """Runs jobs on replicas, beside the requests of those who wait."""

    def room(self, model: ModelName, running: int) -> int:
        """How many more jobs of the model may begin now while `running` of them run."""
        ...

    async def run(self, job: Job, body: bytes) -> Answered | Failed:
        """Executes the job once; cancelling it ends the execution everywhere at once."""
        ...
