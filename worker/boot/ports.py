"""What a replica's process needs from above and below: something to climb, something to serve."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infra.clock import Clock
from infra.contracts.base import GpuId
from infra.contracts.node import ReplicaAssignment
from infra.contracts.revision import ResolvedSource
from worker.boot.followers import ProcessFollowers
from worker.boot.stages import StageTimer
from worker.engine.async_engine import AsyncEngine


class Settle(Protocol):
    def __call__(self, *, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Climbed:
    """What stands at the end of the climb; tokenizer and files are the server's affair.

    `settle` does what the next cold start profits from, once nobody waits for this one any more.
    It blocks, and runs in a thread of the lowest priority. None where there is nothing to do.
    `followers` are the processes that compute the model with this one, where there are any.
    """

    folder: Path
    engine: AsyncEngine
    tokenizer: Any
    settle: Settle | None
    followers: ProcessFollowers | None = None


class Climb(Protocol):
    """Loads weights and builds the engine; all methods may block, and run in threads."""

    def prepare(self, source: ResolvedSource) -> None:
        """Reads what is small of a source while the worker is parked. Raises PlatformError."""

    def __call__(
        self, assignment: ReplicaAssignment, stages: StageTimer, gpus: tuple[GpuId, ...]
    ) -> Climbed:
        """Ends the stage `weights`, and leaves `engine` to be ended when the server listens.

        `gpus` are those that the ranks own, one each.
        """

    def sleep(self) -> bool:
        """Keeps the model of the last climb for one of an equal recipe, off its device.

        Its engine is closed. False where that cannot be: the process is of no more use.
        """


class Server(Protocol):
    """The replica's HTTP surface; see worker.server.app."""

    async def bind(self, host: str) -> int:
        """Listens on a free port of that address."""

    async def serve(self) -> None:
        """Until it is closed."""

    async def drain(self, deadline_s: float) -> bool:
        """Takes nothing new; returns when nothing runs any more, or at the deadline.

        Whether everything that ran was finished.
        """

    async def close(self) -> None:
        """Ends what still runs."""


BuildServer = Callable[[Climbed, ReplicaAssignment, Clock], Server]
