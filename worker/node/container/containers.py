"""Where containers come from: the port."""

from pathlib import Path
from typing import Any, Protocol

from infra.contracts.stage import Moved
from worker.node.container.image import Image


class ContainerFailed(Exception):
    """The container runtime refused, or is away."""


class Containers(Protocol):
    """Starts and removes the containers of one node; blocking calls, from any thread.

    All raise ContainerFailed where the runtime refuses or is away for longer than a moment.
    """

    def start(self, name: str, image: Image, spec: dict[str, Any], *, output: Path) -> int:
        """The process id, on this machine, of what runs in the container now.

        What it prints is appended to `output`.
        """

    def read(self, name: str) -> Moved | None:
        """What a container that starts has read of its image until now, where that is known."""

    def started(self, name: str) -> None:
        """What runs in the container serves now. May be repeated."""

    def remove(self, name: str) -> int | None:
        """Kills what runs and forgets the container; its exit status, where it is known.

        May be repeated, and called for a container of which only a part was made.
        """

    def left_behind(self) -> tuple[str, ...]:
        """Containers of this node that exist now."""
