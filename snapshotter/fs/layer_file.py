"""A layer as one served file: EROFS metadata, then the layer's uncompressed stream."""

from snapshotter.fs.ports import Bytes

_SECTOR_BYTES = 512  # a loop device leaves out what fills no sector


class LayerFile:
    """The image that EROFS is mounted on; its metadata is in memory, the stream is `stream`'s."""

    def __init__(self, name: str, metadata: bytes, stream: Bytes) -> None:
        self._name = name
        self._metadata = metadata
        self._stream = stream
        end = len(metadata) + stream.size
        self._size = end + -end % _SECTOR_BYTES

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    @property
    def head_bytes(self) -> int:
        return len(self._metadata)

    def cached(self, offset: int, length: int) -> bytes | None:
        head, begin, wanted, padding = self._parts(offset, length)
        if not wanted:
            return head + padding
        data = self._stream.cached(begin, wanted)
        return None if data is None else _joined(head, data, padding)

    def read(self, offset: int, length: int) -> bytes:
        head, begin, wanted, padding = self._parts(offset, length)
        data = self._stream.read(begin, wanted) if wanted else b""
        return _joined(head, data, padding)

    def _parts(self, offset: int, length: int) -> tuple[bytes, int, int, bytes]:
        """Bytes of the metadata, offset and length in the stream, zeros at the end."""
        head = self._metadata[offset : offset + length]
        begin = max(0, offset - len(self._metadata))
        wanted = max(0, min(length - len(head), self._stream.size - begin))
        return head, begin, wanted, bytes(length - len(head) - wanted)


def _joined(head: bytes, data: bytes, padding: bytes) -> bytes:
    return head + data + padding if head or padding else data  # which is not copied
