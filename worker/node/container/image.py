"""The image that workers run: what is known of it, and the ports that find and bring it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from infra.contracts.image_pull import Pulled
from worker.node.container.spec import Program

OnProgress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is on this machine, unpacked or mounted."""

    reference: str
    snapshot: str  # of its layers together, as the snapshotter knows them
    program: Program


class Images(Protocol):
    """The images of this machine; blocks."""

    def find(self, reference: str, index: str | None) -> Image | None:
        """None where it has to be pulled, with that index. Raises ImageUnavailable for one that
        cannot be run.
        """


class Puller(Protocol):
    """Brings an image to this machine."""

    async def pull(
        self, reference: str, on_progress: OnProgress, *, index: str | None = None
    ) -> Pulled:
        """Until it can be started. Raises ImageUnavailable. May be repeated, and cancelled.

        `index`: the digest of the only index by which its layers may be mounted.
        """
