"""Indexes of layers that an earlier version of this program left on the node, made anew."""

from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import structlog

from infra.errors import ImageInvalid
from infra.registry.client import Registry
from infra.registry.manifest import Descriptor
from infra.registry.reference import Reference
from snapshotter.index.image_index import find_index
from snapshotter.index.layer_index import is_of_another_version
from snapshotter.registry.referrers import listed_beside

log = structlog.get_logger()


class IndexMaker:
    """For layers that snapshots stand on: they cannot be pulled again as long as those are here."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = Lock()  # one at a time: a layer takes its size of disk, and a core

    def make(self, image: Reference, layer: str, *, is_pinned: bool = False) -> bytes:
        """The index beside the image, if it has been indexed again, else one of the layer itself,
        which is downloaded for it and not kept. `image` is pinned to its manifest. `is_pinned`:
        what lies beside the image may be anybody's, and is not taken.

        Raises what the registry raises, and ImageInvalid.
        """
        packed, made_of = None if is_pinned else self._beside(image, layer), "registry"
        if packed is None or is_of_another_version(packed):
            with self._lock:
                packed, made_of = self._of_layer(image, layer), "layer"
        log.info("layer.index_remade", layer=layer, image=str(image), made_of=made_of)
        return packed

    def _beside(self, image: Reference, layer: str) -> bytes | None:
        manifest = str(image.digest)
        listed = listed_beside(self._registry, image, manifest)
        try:
            found = find_index(self._registry, image, manifest, listed)
            return None if found is None else found.packed(self._registry, layer)
        except ImageInvalid as error:
            log.warning("layer.index_not_used", layer=layer, reason=error.detail)
            return None

    def _of_layer(self, image: Reference, layer: str) -> bytes:
        from snapshotter.index.build import index_layer  # and what inflates, for this alone

        listed = self._registry.manifest(image).content.get("layers")
        layers = [Descriptor.parse(each) for each in listed] if isinstance(listed, list) else []
        described = next((each for each in layers if each.digest == layer), None)
        if described is None:
            raise ImageInvalid(f"{image} has no layer {layer}")
        with TemporaryDirectory(prefix="firstlight-index-") as folder:
            path = Path(folder, "layer")
            self._registry.download(image, described, path)
            return index_layer(path, layer=layer, media_type=described.media_type).packed()
