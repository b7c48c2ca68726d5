"""Which index each image was found to have at deploy: nodes mount its layers by that one alone."""

from collections.abc import Mapping
from typing import Protocol


class PinStore(Protocol):
    """Where pins outlive a restart. Every method is atomic and may be repeated."""

    async def read(self) -> Mapping[str, str]:
        """Digests of indexes by pinned image. Raises StoreUnavailable."""
        ...

    async def write(self, image: str, index: str) -> None:
        """In the place of what was pinned of it. Raises StoreUnavailable."""
        ...


class MemoryPinStore:
    """Pins that end with the process."""

    def __init__(self) -> None:
        self._pins: dict[str, str] = {}

    async def read(self) -> Mapping[str, str]:
        return dict(self._pins)

    async def write(self, image: str, index: str) -> None:
        self._pins[image] = index


class ImagePins:
    """Belongs to the event loop. A pin is of an image's digest, so all revisions of it share it."""

    def __init__(self, store: PinStore) -> None:
        self._store = store
        self._pins: dict[str, str] = {}

    async def load(self) -> None:
        """Reads what another process may have pinned. Raises StoreUnavailable."""
        self._pins = dict(await self._store.read())

    def of(self, image: str) -> str | None:
        """The digest of its index; None: whichever lies beside it."""
        return self._pins.get(image)

    async def pin(self, image: str, index: str) -> None:
        """From now on, and after a restart. Raises StoreUnavailable."""
        if self._pins.get(image) != index:
            await self._store.write(image, index)
            self._pins[image] = index
