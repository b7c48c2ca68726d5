"""Where worker processes come from: the port."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infra.contracts.stage import Rung
from infra.contracts.worker_link import FromWorker, ToWorker
from worker.node.plan import Origin, WorkerId


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: an exit status, or minus the signal's number; None: unknown.

    `code` is the slug of infra.errors that says it best, where there is a better one than that a
    replica failed or was lost.
    """

    status: int | None = None
    why: str | None = None
    code: str | None = None

    def __str__(self) -> str:
        if self.why is not None:
            return self.why
        if self.status is None:
            return "the process is gone"
        if self.status >= 0:
            return f"exit status {self.status}"
        return f"killed by {signal.Signals(-self.status).name}"


class Listener(Protocol):
    """Hears what happens to processes, on the event loop, never from inside a call to the port."""

    def on_message(self, worker_id: WorkerId, message: FromWorker) -> None: ...

    def on_exit(self, worker_id: WorkerId, end: Exit) -> None:
        """Once for every worker launched, after its last message."""

    def on_zygote_up(self) -> None: ...

    def on_zygote_exit(self, end: Exit) -> None:
        """Once for every zygote that was not stopped; then `on_exit` for what it had to fork."""


class Launcher(Protocol):
    """Starts, addresses and kills workers and the fork server; every call returns at once."""

    def listen(self, listener: Listener) -> None:
        """Names the one listener; before anything else."""

    runs_images: bool  # workers are containers; else nobody may be asked for one of an image

    def pin(self, indexes: Mapping[str, str]) -> None:
        """By image, the digest of the only index by which it may be mounted from now on."""

    def climbs_from(self, origin: Origin, *, image: str | None = None) -> tuple[Rung, str]:
        """The rung that a worker launched now starts from, and what the report calls its source."""

    def start_zygote(self) -> None: ...

    def stop_zygote(self) -> None:
        """Kills it, where there is one; the workers it has forked live on."""

    def fork(self, worker_id: WorkerId, *, ranks: int, image: str | None = None) -> None:
        """Asks the zygote for a worker with so many further processes, as soon as it is up.

        `image` is what its container runs; None: what this node runs anyway.
        """

    def spawn(
        self, worker_id: WorkerId, log_path: Path, *, ranks: int, image: str | None = None
    ) -> None:
        """Starts a worker as a program of its own that writes to `log_path` from the start."""

    def send(self, worker_id: WorkerId, message: ToWorker) -> None:
        """Writes to the worker's link; lost where the worker is already gone."""

    def kill(self, worker_id: WorkerId) -> None:
        """SIGKILL; may be repeated."""

    async def close(self) -> None:
        """Kills everything and waits until it is gone."""
