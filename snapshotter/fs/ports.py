"""What the file system asks of whoever has the bytes."""

from collections.abc import Mapping
from typing import Any, Protocol


class Bytes(Protocol):
    """A read-only stream of `size` bytes whose content never changes; safe to call from threads.

    Both readings return exactly `length` bytes; the caller keeps within `size`.
    """

    @property
    def size(self) -> int: ...

    def cached(self, offset: int, length: int) -> bytes | None:
        """The bytes if they are on this machine, else None: never waits for a network.

        May be repeated; raises OSError as a disk does.
        """
        ...

    def read(self, offset: int, length: int) -> bytes:
        """The bytes, fetched first where they are missing; at most 1 MiB are asked for at once.

        May take as long as the origin does, and may be repeated: an OSError (it reaches the
        program that reads, by its errno) says nothing of the next try.
        """
        ...


class ServedFile(Bytes, Protocol):
    """A file of the flat FUSE folder. The name is a digest: equal names have equal bytes."""

    @property
    def name(self) -> str: ...

    @property
    def head_bytes(self) -> int:
        """How much of its beginning is read by every use of it, and is always at hand."""
        ...


class OpenFile(Protocol):
    """Turns what the snapshotter said of a layer into the file that is served.

    Is called again with the same `spec` when the data process was restarted, then perhaps
    without a network, so it reads local files only. Raises PlatformError.
    """

    def __call__(self, name: str, spec: Mapping[str, Any]) -> ServedFile: ...
