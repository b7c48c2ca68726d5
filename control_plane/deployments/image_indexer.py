"""The port that makes an image lazy, and its fake."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from infra.contracts.image_index import ImageIndexed

OnProgress = Callable[[float], None]


class ImageIndexer(Protocol):
    """Sees to it that an image has an index beside it, in its registry."""

    async def index(self, image: str, on_progress: OnProgress, *, pin: str | None) -> ImageIndexed:
        """Finds the index of a pinned image, else makes it, which may take minutes.

        `pin`: the digest of the only one that may be found; None: whichever lies beside the image.
        Raises SourceUnavailable where trying again may help, any other PlatformError where not. May
        be repeated, and cancelled.
        """
        ...


@dataclass
class FakeImageIndexer:
    """Says of every image what a test wants, as soon as it may."""

    result: ImageIndexed | Exception = field(
        default_factory=lambda: ImageIndexed(index=f"sha256:{'1' * 64}", layers=3, lazy=2)
    )
    may_end: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)
    pins: list[str | None] = field(default_factory=list)

    async def index(self, image: str, on_progress: OnProgress, *, pin: str | None) -> ImageIndexed:
        self.asked.append(image)
        self.pins.append(pin)
        on_progress(0.25)
        await self.may_end.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result
