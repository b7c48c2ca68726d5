"""One blob of a registry as a source of ranges."""

from collections.abc import Iterator

from infra.errors import Forbidden, ImageInvalid, NotFound, SourceUnavailable, Unauthorized
from infra.registry.client import Registry
from infra.registry.reference import Reference


class RegistryBlob:
    """What an image layer is read from when no neighbour has it."""

    name = "origin"

    def __init__(self, registry: Registry, image: Reference, digest: str) -> None:
        self._registry = registry
        self._image = image
        self._digest = digest

    def parts(self, offset: int, length: int) -> Iterator[bytes]:
        """Exactly those bytes, unverified. Raises SourceUnavailable for whatever goes wrong."""
        try:
            yield from self._registry.blob_parts(self._image, self._digest, offset, length)
        except (NotFound, Unauthorized, Forbidden, ImageInvalid) as error:
            raise SourceUnavailable(error.detail) from error
