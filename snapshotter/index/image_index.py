"""The indexes of an image's layers, as an artifact beside the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from infra.errors import ImageInvalid
from infra.registry.client import Registry
from infra.registry.manifest import Descriptor
from infra.registry.reference import Reference
from snapshotter.index.layer_index import MEDIA_TYPE, MOST_INDEX_BYTES, LayerIndex
from snapshotter.registry.referrers import of_type

ARTIFACT_TYPE: Final = "application/vnd.firstlight.image-index.v2"
MOST_IMAGE_BYTES: Final = 1 << 30  # of all layers' indexes; an image of 300 GB has as much
LAYER: Final = "dev.firstlight.layer"  # annotation: digest of the layer that a blob is the index of


@dataclass(frozen=True)
class ImageIndex:
    """Where to find the index of each layer that has one."""

    image: Reference
    artifact: str  # its own digest
    layers: Mapping[str, Descriptor]  # by layer digest

    def packed(self, registry: Registry, layer: str) -> bytes | None:
        """The index of a layer, its digest compared; None where the layer has none."""
        blob = self.layers.get(layer)
        if blob is None:
            return None
        return registry.blob(self.image, blob, most_bytes=MOST_INDEX_BYTES)

    def layer(self, registry: Registry, layer: str) -> LayerIndex | None:
        """The index of a layer, parsed and bound to it; None where the layer has none."""
        packed = self.packed(registry, layer)
        return None if packed is None else LayerIndex.parse(packed, layer=layer)


def find_index(
    registry: Registry, image: Reference, manifest: str, listed: Sequence[Descriptor]
) -> ImageIndex | None:
    """The index among what is listed beside the image's manifest, which has that digest.

    Raises what the registry raises, and ImageInvalid for an artifact that is malformed.
    """
    found = of_type(listed, ARTIFACT_TYPE)
    if not found:
        return None
    # several that are as good: all nodes are to take the same one
    artifact = min(found, key=lambda each: each.digest)
    return read_index(registry, image, manifest, artifact.digest)


def read_index(registry: Registry, image: Reference, manifest: str, artifact: str) -> ImageIndex:
    """The index of that digest, whatever is listed; raises NotFound, and what `find_index` does."""
    content = registry.manifest(image.at(artifact)).content
    if content.get("artifactType") != ARTIFACT_TYPE:
        raise ImageInvalid(f"{artifact} is no index of {image} that this version reads")
    subject = Descriptor.parse(content.get("subject"))
    if subject.digest != manifest:
        raise ImageInvalid(f"the index of {image} is beside another image")
    described = content.get("layers")
    if not isinstance(described, list):
        raise ImageInvalid(f"the index of {image} lists no layers")
    blobs = [Descriptor.parse(each) for each in described]
    layers = {
        blob.annotations[LAYER]: blob
        for blob in blobs
        if blob.media_type == MEDIA_TYPE and LAYER in blob.annotations
    }
    num_bytes = sum(blob.size for blob in layers.values())
    if num_bytes > MOST_IMAGE_BYTES:  # a node fetches them all at once
        raise ImageInvalid(f"the index of {image} has {num_bytes} bytes", limit=MOST_IMAGE_BYTES)
    return ImageIndex(image, artifact, layers)
