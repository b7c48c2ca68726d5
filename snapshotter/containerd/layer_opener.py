"""Opens layers in the data process: the index from this disk, the bytes from wherever they are."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, Final

from infra.errors import Invalid
from infra.json_socket import Verb
from infra.registry.client import Registry
from infra.registry.reference import Reference
from snapshotter.blob.blob import Blob
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.peers.peering import Sharing
from snapshotter.blob.source import Decoded
from snapshotter.blob.starts import Starts
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.containerd.index_files import IndexFiles
from snapshotter.containerd.index_maker import IndexMaker
from snapshotter.containerd.read_layers import ReadLayers
from snapshotter.fs.layer_file import LayerFile
from snapshotter.fs.ports import ServedFile
from snapshotter.registry.blob_ranges import RegistryBlob

# As zstd, two chunks after the one that is read; a span of gzip is larger. Measured with torch: 162
# round trips instead of 240 until it is imported, for 10 % more bytes.
_LEAST_AHEAD_BYTES: Final = 512 << 10


class BlobBytes:
    """A blob as the file system reads it; closed when the last read is over."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._lock = Lock()  # guards the next two
        self._readers = 0
        self._is_closed = False

    @property
    def size(self) -> int:
        return self._blob.size

    def cached(self, offset: int, length: int) -> bytes | None:
        with self._reading():
            return self._blob.cached(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        with self._reading():
            return self._blob.read(offset, length)

    def close(self) -> None:
        """Reads fail from now on."""
        with self._lock:
            is_first, self._is_closed = not self._is_closed, True
            if is_first and not self._readers:
                self._blob.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            if self._is_closed:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if self._is_closed and not self._readers:
                    self._blob.close()


class LayerOpener:
    """See the port OpenFile. Any thread may use it."""

    def __init__(
        self,
        files: IndexFiles,
        registry: Registry,
        fetcher: Fetcher,
        starts: Starts,
        sharing: Sharing,
        *,
        deadline_s: float,
    ) -> None:
        """`deadline_s`: how long a read may wait for its bytes."""
        self._sharing = sharing
        self._read = ReadLayers(files)
        self._maker = IndexMaker(registry)
        self._registry = registry
        self._fetcher = fetcher
        self._starts = starts
        self._deadline_s = deadline_s
        self._lock = Lock()  # guards the next
        self._open: dict[str, tuple[str, BlobBytes]] = {}  # by name: digest of the layer, bytes

    def __call__(self, name: str, spec: Mapping[str, Any]) -> ServedFile:
        image, layer = Reference.parse(_text(spec, "image")), _text(spec, "layer")
        read = self._read.take(name, layer, _size(spec), self._remake(image, layer, spec))
        origin = Decoded(RegistryBlob(self._registry, image, layer), read.codec)
        ref = BlobRef(layer, read.table)
        blob = Blob(
            ref,
            self._sharing.before(ref, origin),
            self._fetcher,
            deadline_s=self._deadline_s,
            on_touch=lambda _, chunk: self._starts.touched(name, chunk),
            on_land=lambda flight: self._starts.landed(name, flight),
            least_ahead_bytes=_LEAST_AHEAD_BYTES,
        )
        stream = BlobBytes(blob)
        with self._lock:
            self._open[name] = layer, stream
        self._sharing.opened(blob)
        self._starts.opened(name, blob)
        return LayerFile(name, read.metadata, stream)

    def close(self, name: str) -> None:
        """The layer is not served any more; its chunks may go when others need the room."""
        self._starts.closed(name)
        with self._lock:
            layer, stream = self._open.pop(name, ("", None))
        if stream is not None:
            self._sharing.closed(layer)
            stream.close()

    def verbs(self) -> dict[str, Verb]:
        """For the data process: `expect` {name, spec}: it will be added soon; `kept_bytes` {name} →
        bytes of that layer on this disk; `starting` {image, layers?, entrypoint?, container?} and
        `ready` {image, entrypoint?, container?}, pinned to its manifest; `read` {container} → what
        it has read of its image, while it starts.
        """
        return {
            "expect": self._expect,
            "kept_bytes": self._kept_bytes,
            "starting": self._starting,
            "read": self._has_read,
            "ready": self._ready,
        }

    def _starting(self, question: Mapping[str, Any]) -> None:
        layers = question.get("layers", [])
        if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
            raise Invalid("the image's layers are no list of names")
        entrypoint, container = _maybe(question, "entrypoint"), _maybe(question, "container")
        self._starts.starting(_image(question), layers, entrypoint, container)

    def _has_read(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        read = self._starts.read(_text(question, "container"))
        return None if read is None else read.model_dump()

    def _ready(self, question: Mapping[str, Any]) -> None:
        container = _maybe(question, "container")
        if container is not None:
            self._starts.started(container)
        self._starts.ready(str(_image(question).digest), _maybe(question, "entrypoint"))

    def _expect(self, question: Mapping[str, Any]) -> None:
        name, spec = _text(question, "name"), question.get("spec")
        if not isinstance(spec, dict):
            raise Invalid("the spec is no JSON object")
        with self._lock:
            is_open = name in self._open
        if not is_open:
            image, layer = Reference.parse(_text(spec, "image")), _text(spec, "layer")
            self._read.expect(name, layer, _size(spec), self._remake(image, layer, spec))

    def _remake(self, image: Reference, layer: str, spec: Mapping[str, Any]) -> Callable[[], bytes]:
        return partial(self._maker.make, image, layer, is_pinned="pin" in spec)

    def _kept_bytes(self, question: Mapping[str, Any]) -> int:
        with self._lock:
            layer, _ = self._open.get(_text(question, "name"), ("", None))
        stored = self._fetcher.store.blobs().get(layer)
        return 0 if stored is None else stored.kept_bytes


def _image(question: Mapping[str, Any]) -> Reference:
    image = Reference.parse(_text(question, "image"))
    if image.digest is None:
        raise Invalid(f"{image} is not pinned to a manifest")
    return image


def _maybe(question: Mapping[str, Any], name: str) -> str | None:
    return None if question.get(name) is None else _text(question, name)


def _text(spec: Mapping[str, Any], name: str) -> str:
    value = spec.get(name)
    if not isinstance(value, str):
        raise Invalid(f"{name} is no text")
    return value


def _size(spec: Mapping[str, Any]) -> int | None:
    """Of the layer, as its image says it; what an earlier version mounted does not tell."""
    value = spec.get("size")
    return value if isinstance(value, int) else None
