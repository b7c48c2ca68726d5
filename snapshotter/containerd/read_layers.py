"""Indexes of layers, read and made into file systems while it is still decided to mount them."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Final

from infra.errors import ImageInvalid
from snapshotter.blob.codec import Codec, codec_of
from snapshotter.containerd.index_files import IndexFiles
from snapshotter.index.chunk_table import ChunkTable
from snapshotter.index.erofs_writer import erofs_image
from snapshotter.index.layer_index import LayerIndex, is_of_another_version

_MOST_WAITING: Final = 16  # a few megabytes each

Remake = Callable[[], bytes]
"""Gives the layer's index in the form that is read here; raises PlatformError."""


@dataclass(frozen=True, slots=True)
class ReadLayer:
    """What serving a layer needs; the rest of its index is large, and not kept."""

    layer: str  # its digest
    table: ChunkTable
    codec: Codec
    metadata: bytes


class ReadLayers:
    """Each is read once, by whoever comes first. Any thread may use it."""

    def __init__(self, files: IndexFiles) -> None:
        self._files = files
        self._lock = Lock()  # guards the next
        self._read: OrderedDict[str, Future[ReadLayer]] = OrderedDict()

    def expect(
        self,
        name: str,
        layer: str,
        layer_bytes: int | None = None,
        remake: Remake | None = None,
    ) -> None:
        """Reads it, and keeps it until it is taken or many others have come since."""
        self._reading(name, layer, layer_bytes, remake).result()

    def take(
        self,
        name: str,
        layer: str,
        layer_bytes: int | None = None,
        remake: Remake | None = None,
    ) -> ReadLayer:
        """The layer, bound to its digest and size. An index that another version of this program
        left is made anew by `remake`, once. Raises ImageInvalid, StoreUnavailable and what that
        raises.
        """
        reading = self._reading(name, layer, layer_bytes, remake)
        with self._lock:
            self._read.pop(name, None)
        read = reading.result()
        if read.layer != layer:
            raise ImageInvalid(f"the index {name} is one of another layer than {layer}")
        return read

    def _reading(
        self, name: str, layer: str, layer_bytes: int | None, remake: Remake | None
    ) -> Future[ReadLayer]:
        with self._lock:
            reading = self._read.get(name)
            if reading is not None:
                return reading
            reading = self._read[name] = Future()
            while len(self._read) > _MOST_WAITING:
                self._read.popitem(last=False)
        try:
            packed = self._files.read(name)
            if remake is not None and is_of_another_version(packed):
                packed = self._files.remade(name, remake, is_readable=_is_readable)
            index = LayerIndex.parse(packed, layer=layer, layer_bytes=layer_bytes)
            metadata = self._files.metadata(name, lambda: erofs_image(index.inodes))
            read = ReadLayer(index.layer, index.table, codec_of(index), metadata)
            reading.set_result(read)
        except BaseException as error:
            with self._lock:
                if self._read.get(name) is reading:
                    del self._read[name]
            reading.set_exception(error)
        return reading


def _is_readable(packed: bytes) -> bool:
    return not is_of_another_version(packed)
