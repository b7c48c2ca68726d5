"""What a registry keeps besides blobs: descriptors, manifests and their media types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from infra.errors import ImageInvalid
from infra.registry.reference import DIGEST

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
LISTS: Final = frozenset({INDEX, DOCKER_LIST})

_MOST_BLOB_BYTES: Final = 1 << 40


@dataclass(frozen=True)
class Descriptor:
    """What a manifest says of one piece of content."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str]
    artifact_type: str | None = None

    @classmethod
    def parse(cls, value: Any) -> "Descriptor":
        """Raises ImageInvalid."""
        if not isinstance(value, dict):
            raise ImageInvalid("a descriptor is no object")
        digest, size = value.get("digest"), value.get("size")
        media_type, annotations = value.get("mediaType", ""), value.get("annotations") or {}
        artifact_type = value.get("artifactType")
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise ImageInvalid(f"a descriptor has the digest {str(digest)[:100]!r}")
        if not isinstance(size, int) or not 0 <= size <= _MOST_BLOB_BYTES:
            raise ImageInvalid(f"a descriptor has the size {str(size)[:100]!r}")
        if not isinstance(media_type, str) or not isinstance(annotations, dict):
            raise ImageInvalid("a descriptor is malformed")
        texts = {name: text for name, text in annotations.items() if isinstance(text, str)}
        artifact_type = artifact_type if isinstance(artifact_type, str) else None
        return cls(media_type, digest, size, texts, artifact_type)

    def as_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        return value


@dataclass(frozen=True)
class Manifest:
    """A manifest as the registry has it, parsed."""

    descriptor: Descriptor
    raw: bytes
    content: Mapping[str, Any]
