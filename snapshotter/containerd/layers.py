"""The port to layers that are mounted instead of unpacked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from infra.containerd.labels import INDEX
from infra.contracts.stage import Moved
from infra.registry.reference import Reference

IMAGE_REFERENCE = "containerd.io/snapshot/cri.image-ref"
MANIFEST_DIGEST = "containerd.io/snapshot/cri.manifest-digest"
LAYER_DIGEST = "containerd.io/snapshot/cri.layer-digest"


@dataclass(frozen=True, slots=True)
class WantedLayer:
    """A layer of an image in a registry."""

    reference: str  # host/repository:tag, as it was pulled
    manifest: str  # digest
    layer: str  # digest
    index: str | None = None  # digest of the only index by which it may be mounted

    @classmethod
    def of(cls, labels: Mapping[str, str]) -> Self | None:
        """What containerd's CRI plugin, and our own client, say of the layer they want."""
        names = IMAGE_REFERENCE, MANIFEST_DIGEST, LAYER_DIGEST
        reference, manifest, layer = (labels.get(name, "") for name in names)
        if not (reference and manifest and layer):
            return None
        return cls(reference, manifest, layer, labels.get(INDEX) or None)

    @property
    def image(self) -> Reference:
        """Pinned to its manifest. Raises ImageInvalid."""
        return Reference.parse(self.reference).at(self.manifest)

    def labels(self) -> dict[str, str]:
        labels = {
            IMAGE_REFERENCE: self.reference,
            MANIFEST_DIGEST: self.manifest,
            LAYER_DIGEST: self.layer,
        }
        return labels if self.index is None else {**labels, INDEX: self.index}


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A layer that can be mounted; equal names have equal files."""

    name: str
    spec: Mapping[str, Any]  # JSON: all that mounting it again needs


@dataclass(frozen=True, slots=True)
class ContainerStart:
    """A container that starts: its snapshot's key, its image, pinned to its manifest, the layers of
    it that are mounted, and what it runs, where that is known.
    """

    container: str
    image: str
    layers: tuple[str, ...]
    entrypoint: str | None


class Layers(Protocol):
    """Called from any thread; `mount` and `unmount` from one at a time."""

    def find(self, wanted: WantedLayer) -> FoundLayer | None:
        """Asks the registry; None where the layer has to be unpacked. Raises PlatformError."""
        ...

    def mount(self, layer: FoundLayer) -> Path:
        """The folder with its files; reads no network. Raises PlatformError, may be repeated."""
        ...

    def unmount(self, name: str) -> None:
        """Takes it away, also while files of it are open; may be repeated."""
        ...

    def kept_bytes(self, name: str) -> int:
        """Of the layer, on this node's disk."""
        ...

    def starting(self, start: ContainerStart) -> None:
        """A container is about to read its image. Whose program is known will be called ready."""
        ...

    def read(self, start: ContainerStart) -> Moved | None:
        """What it has read of its image until now, where that is known; until it is ready."""
        ...

    def ready(self, start: ContainerStart) -> None:
        """What it runs has started. Returns at once; may be repeated."""
        ...


@dataclass
class FolderLayers:
    """In memory, with folders for layers: knows no registry and mounts nothing."""

    known: dict[str, Path] = field(default_factory=dict)  # by layer digest
    mounted: dict[str, Path] = field(default_factory=dict)
    started: list[ContainerStart] = field(default_factory=list)
    are_ready: list[ContainerStart] = field(default_factory=list)
    moved: Moved | None = None  # what every container has read

    def find(self, wanted: WantedLayer) -> FoundLayer | None:
        folder = self.known.get(wanted.layer)
        return None if folder is None else FoundLayer(wanted.layer, {"folder": str(folder)})

    def mount(self, layer: FoundLayer) -> Path:
        self.mounted[layer.name] = Path(layer.spec["folder"])
        return self.mounted[layer.name]

    def unmount(self, name: str) -> None:
        self.mounted.pop(name, None)

    def kept_bytes(self, name: str) -> int:
        return 0

    def starting(self, start: ContainerStart) -> None:
        self.started.append(start)

    def read(self, start: ContainerStart) -> Moved | None:
        return self.moved

    def ready(self, start: ContainerStart) -> None:
        self.are_ready.append(start)
