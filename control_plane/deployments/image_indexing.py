"""Makes the images of revisions lazy, one after the other, and says how far that is."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Never

import structlog

from control_plane.deployments.image_indexer import ImageIndexer
from control_plane.deployments.image_pins import ImagePins
from control_plane.deployments.store import Change
from infra.backoff import Backoff
from infra.contracts.image import ImageState, ImageStatus, ResolvedImage
from infra.contracts.image_index import ImageIndexed
from infra.contracts.revision import Revision
from infra.errors import PlatformError, SourceUnavailable, StoreUnavailable

log = structlog.get_logger()

OnSettled = Callable[[], None]

MOST_TRIES: Final = 5
AGAIN: Final = Backoff(first_s=30.0, most_s=600.0)
_LEAD_S: Final = 1.0  # between looks whether we lead
_MOST_KNOWN: Final = 4096
_NOT_HERE: Final = "indexes are not made here (PLATFORM_INDEX_IMAGES)"


@dataclass(frozen=True, slots=True)
class _Known:
    """One image; `holds_standby`: workers are parked with it once it is settled, not before."""

    state: ImageState
    detail: str
    holds_standby: bool = False
    fraction: float | None = None
    hint: str | None = None
    tries: int = 0

    @property
    def is_settled(self) -> bool:
        return self.state in {ImageState.LAZY, ImageState.WHOLE}


class ImageIndexing:
    """Belongs to the event loop; what it knows is found out again after a restart.

    No deployment and no start waits for it: where an index cannot be made, layers are downloaded.
    """

    def __init__(
        self,
        indexer: ImageIndexer | None,
        pins: ImagePins,
        *,
        is_leading: Callable[[], bool] = lambda: True,
        again: Backoff = AGAIN,
    ) -> None:
        """Without an indexer nothing is indexed. `pins` hears of each index that is there."""
        self._indexer = indexer
        self._pins = pins
        self._is_leading = is_leading
        self._again = again
        self._known: dict[str, _Known] = {}
        self._queue: deque[str] = deque()
        self._news = asyncio.Event()
        self._listeners: list[OnSettled] = []

    def subscribe(self, listener: OnSettled) -> None:
        """Calls back when an image is settled that workers are parked with from then on."""
        self._listeners.append(listener)

    def pinned(self, image: ResolvedImage) -> None:
        """A revision that is about to be published runs it. An earlier failure is tried again."""
        known = self._known.get(image.reference)
        if self._indexer is not None and (known is None or known.state is ImageState.WHOLE):
            self._want(image.reference, holds_standby=known is None)

    def deployment_changed(self, change: Change) -> None:
        """What is in traffic after a restart is looked at again, and workers stay parked."""
        for revision in () if change.after is None else change.after.revisions:
            image = revision.image
            if self._indexer is None or image is None or image.reference in self._known:
                continue
            self._want(image.reference, holds_standby=False)

    def is_settled(self, image: str) -> bool:
        """Whether workers may be parked with it: else they would pull what may be lazy soon."""
        known = self._known.get(image)
        return known is None or known.is_settled or not known.holds_standby

    def status_of(self, revision: Revision) -> ImageStatus | None:
        """Of its image; None where none is pinned."""
        image = revision.image
        if image is None:
            return None
        known = self._known.get(image.reference) or _Known(ImageState.UNKNOWN, _NOT_HERE)
        return ImageStatus(
            reference=image.reference,
            state=known.state,
            fraction=known.fraction,
            detail=known.detail,
            hint=known.hint,
        )

    async def run(self) -> Never:
        """Until cancelled."""
        while True:
            while not (self._queue and self._is_leading()):
                self._news.clear()
                if self._queue:
                    await asyncio.sleep(_LEAD_S)
                else:
                    await self._news.wait()
            await self._index(self._queue.popleft())

    # -- one image -----------------------------------------------------------------------------

    def _want(self, image: str, *, holds_standby: bool) -> None:
        self._forget_some()
        waiting = "its index is made after those of others" if self._queue else "about to index it"
        self._known[image] = _Known(ImageState.WAITING, waiting, holds_standby)
        self._put(image)

    def _put(self, image: str) -> None:
        if image not in self._queue:
            self._queue.append(image)
        self._news.set()

    async def _index(self, image: str) -> None:
        assert self._indexer is not None, "else nothing is wanted"
        before = self._known.get(image)
        if before is None:  # forgotten since
            return
        known = replace(before, state=ImageState.INDEXING, tries=before.tries + 1)
        self._known[image] = replace(known, detail="indexing image", fraction=0.0)

        def on_progress(fraction: float) -> None:
            said = f"indexing image, {fraction:.0%}"
            self._known[image] = replace(known, detail=said, fraction=fraction)

        try:
            pin = self._pins.of(image)
            indexed = await self._indexer.index(image, on_progress, pin=pin)
            if indexed.index is not None:
                await self._pins.pin(image, indexed.index)
        except PlatformError as error:
            self._failed(image, known, error)
        except Exception as error:  # the next image must not wait for what is wrong with us
            log.exception("image.not-indexed", image=image)
            self._failed(image, known, PlatformError(str(error)))
        else:
            log.info("image.indexed", image=image, layers=indexed.layers, lazy=indexed.lazy)
            self._settle(image, _of(indexed))

    def _failed(self, image: str, known: _Known, error: PlatformError) -> None:
        """What may pass is tried again, behind other images."""
        log.warning("image.not-indexed", image=image, why=error.detail, tries=known.tries)
        detail = f"its layers are downloaded whole: {error.detail}"
        whole = _Known(ImageState.WHOLE, detail, hint=error.hint, tries=known.tries)
        self._settle(image, whole)
        if isinstance(error, SourceUnavailable | StoreUnavailable) and known.tries < MOST_TRIES:
            wait_s = self._again.delay_s(known.tries)
            asyncio.get_running_loop().call_later(wait_s, self._put, image)

    def _settle(self, image: str, known: _Known) -> None:
        was_held = not self.is_settled(image)
        self._known[image] = known
        for listener in self._listeners if was_held else ():
            listener()

    def _forget_some(self) -> None:
        """The oldest that is settled; it is looked at again when it is deployed again."""
        if len(self._known) >= _MOST_KNOWN:
            settled = (image for image, known in self._known.items() if known.is_settled)
            if (oldest := next(settled, None)) is not None:
                del self._known[oldest]


def _of(indexed: ImageIndexed) -> _Known:
    others = indexed.layers - indexed.lazy
    if not indexed.lazy:
        why = indexed.why_not or "all are small"
        return _Known(ImageState.WHOLE, f"its layers are downloaded whole: {why}")
    detail = f"{indexed.lazy} of {indexed.layers} layers are mounted"
    if others:
        rest = "another one has" if others == 1 else "the others have"
        why = f"{rest} no index: {indexed.why_not}" if indexed.why_not else "the others are small"
        detail = f"{detail}; {why}"
    return _Known(ImageState.LAZY, detail)
