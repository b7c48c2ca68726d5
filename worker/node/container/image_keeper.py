"""Sees to it that an image is here before a container is started: one pull for all who wait."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from infra.clock import Clock
from infra.contracts.image_pull import Pulled
from infra.contracts.stage import Stage, StageProgress, StageTiming
from infra.contracts.worker_link import FromWorker, Progress, StageDone
from infra.errors import ImageUnavailable
from worker.node.container.image import Image, Images, Puller

log = structlog.get_logger()

MOST_KEEPERS = 256  # a revision pins an image, so there may be ever more


@dataclass(frozen=True, slots=True)
class _Here:
    image: Image
    pulled: Pulled | None


class ImageKeeper:
    """Belongs to the event loop."""

    def __init__(
        self,
        reference: str,
        images: Images,
        puller: Puller,
        clock: Clock,
        *,
        index: str | None = None,
    ) -> None:
        """`index`: the digest of the only one by which layers may be mounted."""
        self._reference = reference
        self._index = index
        self._images = images
        self._puller = puller
        self._clock = clock
        self._coming: asyncio.Task[_Here] | None = None
        self._waiting: set[Callable[[FromWorker], None]] = set()
        self.is_here = False

    async def ensure(self, tell: Callable[[FromWorker], None]) -> Image:
        """The image; who has to wait for it hears how far it is, and what the stage took.

        Raises ImageUnavailable. A pull goes on while nobody waits for it any more.
        """
        began_at = self._clock.now()
        if self._coming is None:
            self._coming = asyncio.create_task(self._bring(), name="image")
        coming = self._coming
        self._waiting.add(tell)
        try:
            here = await asyncio.shield(coming)
        finally:
            self._waiting.discard(tell)
            if coming.done() and self._coming is coming:
                self._coming = None
        if here.pulled is not None:
            tell(StageDone(timing=self._timing(began_at, here.pulled)))
        return here.image

    @property
    def is_busy(self) -> bool:
        return self._coming is not None

    async def close(self) -> None:
        """Ends a pull that is under way."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait({self._coming})

    async def _bring(self) -> _Here:
        image = await asyncio.to_thread(self._images.find, self._reference, self._index)
        pulled = None
        if image is None:
            self.is_here = False
            log.info("image.pulling", image=self._reference, index=self._index)
            pulled = await self._puller.pull(self._reference, self._on_progress, index=self._index)
            log.info("image.pulled", image=self._reference, mib=pulled.bytes >> 20)
            image = await asyncio.to_thread(self._images.find, self._reference, self._index)
            if image is None:
                raise ImageUnavailable(f"{self._reference} was pulled and is not here")
        self.is_here = True
        return _Here(image, pulled)

    def _on_progress(self, fraction: float) -> None:
        said = Progress(progress=StageProgress(stage=Stage.IMAGE, fraction=fraction))
        for tell in tuple(self._waiting):
            tell(said)

    def _timing(self, began_at: float, pulled: Pulled) -> StageTiming:
        return StageTiming(
            stage=Stage.IMAGE,
            started_at=began_at,
            seconds=max(0.0, self._clock.now() - began_at),
            bytes=pulled.bytes,
            source=pulled.source,
        )


class ImageKeepers:
    """One for each image that workers of this node run; belongs to the event loop."""

    def __init__(
        self, own: str, images: Images, puller: Puller, clock: Clock, *, mounts: bool = True
    ) -> None:
        """`own` is what workers run that are not told otherwise; its layers may be mounted by
        whichever index lies beside it. `mounts`: layers may be; else pins are of no use.
        """
        self._mounts = mounts
        self._own = own
        self._images = images
        self._puller = puller
        self._clock = clock
        self._keepers: dict[tuple[str, str | None], ImageKeeper] = {}
        self._indexes: Mapping[str, str] = {}

    def pin(self, indexes: Mapping[str, str]) -> None:
        """By image, the digest of the only index by which it may be mounted from now on."""
        self._indexes = indexes if self._mounts else {}

    def of(self, image: str | None) -> ImageKeeper:
        """The image's; None: that of our own."""
        reference = image or self._own
        index = None if image is None else self._indexes.get(image)
        key = reference, index
        if key not in self._keepers:
            self._forget_some()
            self._keepers[key] = ImageKeeper(
                reference, self._images, self._puller, self._clock, index=index
            )
        return self._keepers[key]

    async def close(self) -> None:
        """Ends all pulls that are under way."""
        for keeper in self._keepers.values():
            await keeper.close()

    def _forget_some(self) -> None:
        """Those that are asked for next find their image as if they had never looked."""
        if len(self._keepers) >= MOST_KEEPERS:
            self._keepers = {key: keeper for key, keeper in self._keepers.items() if keeper.is_busy}
