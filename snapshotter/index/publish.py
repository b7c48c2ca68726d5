"""Makes images lazy: adds an index beside one, or pushes it in another form with an index."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from infra.errors import ImageInvalid, NotFound
from infra.json_file import parse_json_object
from infra.registry.client import Registry
from infra.registry.manifest import LISTS, MANIFEST, Descriptor, Manifest
from infra.registry.reference import Reference
from snapshotter.index.build import index_layer, unpack_tar
from snapshotter.index.image_index import ARTIFACT_TYPE, LAYER, ImageIndex, find_index, read_index
from snapshotter.index.layer_index import MEDIA_TYPE, LayerIndex
from snapshotter.index.zstd_frames import cuts, write_frames
from snapshotter.registry.image import (
    MOST_CONFIG_BYTES,
    ImageLayer,
    choose,
    configuration_of,
    layers_of,
)
from snapshotter.registry.referrers import attach, listed_beside

LEAST_LAYER_BYTES: Final = 10 << 20  # smaller ones are downloaded before an index pays
SMALL: Final = "it is small"
ZSTD_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+zstd"


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What came of one layer; `why_not` says why it has no index."""

    digest: str
    size_bytes: int
    num_chunks: int = 0
    index_bytes: int = 0
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """An image that has an index now."""

    image: str  # with its digest
    index: str | None  # digest of the artifact; None: no layer can have one
    layers: tuple[LayerReport, ...]


OnLayer = Callable[[LayerReport], None]
OnProgress = Callable[[float], None]


class Publisher:
    """Needs a registry that it may push to; raises what that raises."""

    def __init__(
        self,
        registry: Registry,
        *,
        architecture: str,
        on_layer: OnLayer = lambda report: None,
        on_progress: OnProgress = lambda fraction: None,
        least_layer_bytes: int = LEAST_LAYER_BYTES,
    ) -> None:
        self._registry = registry
        self._architecture = architecture
        self._on_layer = on_layer
        self._on_progress = on_progress
        self._least_layer_bytes = least_layer_bytes

    def index(self, image: Reference) -> Published:
        """Pushes an index of the image's layers beside it; the image itself stays as it is.

        A layer that cannot have one is left out, and pulled as it always was. May be repeated.
        """
        manifest, _, layers = self._image(image)
        return self._index(image, manifest, layers)

    def find_or_index(self, image: Reference, *, pin: str | None = None) -> Published:
        """The same, unless an index is beside the image already: that of the digest `pin`, where
        there is one, since others may be anybody's.

        Raises Unauthorized or Forbidden where none may be pushed, before any layer is read.
        """
        manifest, _, layers = self._image(image)
        found = self._find(image, manifest.descriptor.digest, layers, pin)
        if found is not None:
            return found
        if any(layer.blob.size >= self._least_layer_bytes for layer in layers):
            self._registry.check_push(image)
        return self._index(image, manifest, layers)

    def _find(
        self, image: Reference, manifest: str, layers: tuple[ImageLayer, ...], pin: str | None
    ) -> Published | None:
        """What is damaged is made anew, as what is missing."""
        try:
            found = self._index_beside(image, manifest, pin)
        except (ImageInvalid, NotFound):
            return None
        if found is None:
            return None
        reports = [
            LayerReport(
                layer.blob.digest,
                layer.blob.size,
                index_bytes=described.size if described else 0,
                why_not=None if described else self._why_none(layer),
            )
            for layer in layers
            for described in [found.layers.get(layer.blob.digest)]
        ]
        return Published(_named(image, manifest), found.artifact, tuple(reports))

    def _index_beside(self, image: Reference, manifest: str, pin: str | None) -> ImageIndex | None:
        if pin is not None:
            return read_index(self._registry, image, manifest, pin)
        listed = listed_beside(self._registry, image, manifest)
        return find_index(self._registry, image, manifest, listed)

    def _why_none(self, layer: ImageLayer) -> str:
        is_small = layer.blob.size < self._least_layer_bytes
        return SMALL if is_small else "it could not have one when the image was indexed"

    def _index(
        self, image: Reference, manifest: Manifest, layers: tuple[ImageLayer, ...]
    ) -> Published:
        blobs, reports = [], []
        num_bytes = sum(layer.blob.size for layer in layers) or 1
        done = 0
        for layer in layers:
            with TemporaryDirectory(prefix="firstlight-index-") as folder:
                report, blob = self._index_layer(
                    image, layer, Path(folder) / "layer", progress=(done, num_bytes)
                )
            done += layer.blob.size
            self._on_progress(done / num_bytes)
            blobs += [blob] if blob else []
            reports.append(report)
            self._on_layer(report)
        return self._published(image, manifest.descriptor, blobs, reports)

    def convert(self, image: Reference, target: Reference) -> Published:
        """Pushes the image as `target`: the same tars in zstd frames, with an index.

        Any client that knows zstd layers may pull it.
        """
        manifest, config, layers = self._image(image)
        described, blobs, reports = [], [], []
        for layer in layers:
            with TemporaryDirectory(prefix="firstlight-convert-") as folder:
                stored = self._convert_layer(image, target, layer, Path(folder))
                report, blob = self._index_layer(
                    target, replace(layer, blob=stored), Path(folder) / "zstd"
                )
            described.append(stored.as_json())
            blobs += [blob] if blob else []
            reports.append(report)
            self._on_layer(report)
        pushed = self._push_image(manifest, config, described, target)
        return self._published(target, pushed, blobs, reports)

    def _image(self, image: Reference) -> tuple[Manifest, bytes, tuple[ImageLayer, ...]]:
        manifest = self._registry.manifest(image)
        if manifest.descriptor.media_type in LISTS:
            listed = manifest.content.get("manifests")
            chosen = choose(listed, architecture=self._architecture)
            manifest = self._registry.manifest(image.at(chosen.digest))
        described = configuration_of(manifest.content)
        config = self._registry.blob(image, described, most_bytes=MOST_CONFIG_BYTES)
        parsed = parse_json_object(config, name=f"the configuration of {image}")
        return manifest, config, layers_of(manifest.content, parsed)

    def _index_layer(
        self,
        image: Reference,
        layer: ImageLayer,
        path: Path,
        *,
        progress: tuple[int, int] | None = None,
    ) -> tuple[LayerReport, Descriptor | None]:
        """`path`: where the layer is, or is to be downloaded. `progress`: bytes of the layers
        before it, and of all; half of a layer's time is its download."""
        report = LayerReport(layer.blob.digest, layer.blob.size)
        if layer.blob.size < self._least_layer_bytes:
            return replace(report, why_not=SMALL), None
        if not path.exists():
            self._registry.download(image, layer.blob, path)
        if progress is not None:
            before, of = progress
            self._on_progress((before + layer.blob.size / 2) / of)
        try:
            index = _checked(path, layer)
        except ImageInvalid as error:
            return replace(report, why_not=error.detail), None
        packed = index.packed()
        pushed = self._registry.push_blob(image, packed, MEDIA_TYPE)
        blob = replace(pushed, annotations={LAYER: layer.blob.digest})
        return replace(report, num_chunks=len(index.table), index_bytes=len(packed)), blob

    def _convert_layer(
        self, image: Reference, target: Reference, layer: ImageLayer, folder: Path
    ) -> Descriptor:
        """The layer in `target`: as `folder/zstd` too, unless it stays as it is."""
        original = folder / "original"
        self._registry.download(image, layer.blob, original)
        if layer.blob.size >= self._least_layer_bytes:
            with (folder / "tar").open("w+b") as tar, (folder / "zstd").open("wb") as stored:
                entries = unpack_tar(original, tar, media_type=layer.blob.media_type)
                size = tar.tell()
                tar.seek(0)
                write_frames(tar, cuts(entries, size), stored)
            (folder / "tar").unlink()
            return self._registry.push_blob(target, folder / "zstd", ZSTD_LAYER)
        return self._registry.push_blob(target, original, layer.blob.media_type)

    def _push_image(
        self, source: Manifest, config: bytes, layers: list[dict[str, Any]], target: Reference
    ) -> Descriptor:
        described = configuration_of(source.content)
        stored = self._registry.push_blob(target, config, described.media_type)
        manifest = dict(source.content) | {
            "mediaType": MANIFEST,
            "config": stored.as_json(),
            "layers": layers,
        }
        pushed, _ = self._registry.push_manifest(target, manifest, name=target.wanted)
        return pushed

    def _published(
        self,
        image: Reference,
        subject: Descriptor,
        blobs: list[Descriptor],
        reports: list[LayerReport],
    ) -> Published:
        artifact = None
        if blobs:
            artifact = attach(
                self._registry, image, subject, artifact_type=ARTIFACT_TYPE, blobs=blobs
            ).digest
        return Published(_named(image, subject.digest), artifact, tuple(reports))


def _named(image: Reference, digest: str) -> str:
    return str(replace(image, digest=digest))


def _checked(path: Path, layer: ImageLayer) -> LayerIndex:
    """The layer's index; raises ImageInvalid unless its tar is the one that the image names."""
    index = index_layer(path, layer=layer.blob.digest, media_type=layer.blob.media_type)
    if index.diff_id != layer.diff_id:
        raise ImageInvalid("its tar is not the one that the image names")
    return index
