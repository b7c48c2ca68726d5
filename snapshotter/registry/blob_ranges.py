"""One blob of a registry as a source of ranges."""

from infra.errors import Forbidden, NotFound, SourceUnavailable, Unauthorized
from infra.registry.client import Registry
from infra.registry.reference import Reference


class RegistryBlob:
    """What an image layer is read from when no neighbour has it."""

    name = "origin"

    def __init__(self, registry: Registry, image: Reference, digest: str) -> None:
        self._registry = registry
        self._image = image
        self._digest = digest

    def read(self, offset: int, length: int) -> bytes:
        """Exactly those bytes, unverified. Raises SourceUnavailable for whatever goes wrong."""
        try:
            return self._registry.blob_range(self._image, self._digest, offset, length)
        except (NotFound, Unauthorized, Forbidden) as error:
            raise SourceUnavailable(error.detail) from error
