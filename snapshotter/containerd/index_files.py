"""The indexes of this node's layers, as files: a layer is mounted again without network."""

import os
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from threading import get_ident
from typing import Final

from infra.errors import StoreUnavailable
from snapshotter.blob.stored_blob import hex_of

_DIGEST_BYTES: Final = 32


class IndexFiles:
    """For each index a file, and beside it the metadata of the file system that was made of it.

    Any thread may use it. The metadata is kept because it must never change while the kernel has
    it mounted, also when the program that made it does; after a crash of the machine nothing is
    mounted, and what the disk has lost of it is made anew.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def keep_only(self, digests: Iterable[str]) -> None:
        """Forgets what was looked up and never mounted; call it while nothing is looked up."""
        kept = {hex_of(digest) for digest in digests}
        for path in self._folder.iterdir():
            if path.name.partition(".")[0] not in kept:
                path.unlink(missing_ok=True)

    def has(self, digest: str) -> bool:
        return self._index(digest).exists()

    def keep(self, digest: str, packed: bytes) -> None:
        """It can be read from now on; it is on the disk after `sync`. Raises StoreUnavailable."""
        _write(self._index(digest), packed)

    def sync(self, digest: str) -> None:
        """What was kept outlives a crash of the machine when this returns. Raises
        StoreUnavailable."""
        try:
            with self._index(digest).open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreUnavailable(f"the index {digest} cannot be kept: {error}") from error

    def read(self, digest: str) -> bytes:
        """The index, compared with its digest. Raises StoreUnavailable."""
        try:
            packed = self._index(digest).read_bytes()
        except OSError as error:
            raise StoreUnavailable(f"the index {digest} cannot be read: {error}") from error
        if f"sha256:{sha256(packed).hexdigest()}" != digest:
            self.remove(digest)  # the next pull fetches it again
            raise StoreUnavailable(f"the index {digest} is damaged on this disk")
        return packed

    def metadata(self, digest: str, make: Callable[[], bytes]) -> bytes:
        """The file system's metadata: what was kept, or else what `make` gives now.

        Raises StoreUnavailable.
        """
        path = self._metadata(digest)
        kept = _kept(path)
        return _made(path, make) if kept is None else kept

    def remade(
        self, digest: str, make: Callable[[], bytes], *, is_readable: Callable[[bytes], bool]
    ) -> bytes:
        """Another index of the same layer, which stands for the one of that digest: what was kept
        if it can be read, or else what `make` gives now. Raises StoreUnavailable.
        """
        path = self._remade(digest)
        kept = _kept(path)
        return _made(path, make) if kept is None or not is_readable(kept) else kept

    def remove(self, digest: str) -> None:
        self._index(digest).unlink(missing_ok=True)
        self._metadata(digest).unlink(missing_ok=True)
        self._remade(digest).unlink(missing_ok=True)

    def _index(self, digest: str) -> Path:
        return self._folder / f"{hex_of(digest)}.index"

    def _metadata(self, digest: str) -> Path:
        return self._folder / f"{hex_of(digest)}.erofs"

    def _remade(self, digest: str) -> Path:
        return self._folder / f"{hex_of(digest)}.remade"


def _kept(path: Path) -> bytes | None:
    """What was made before; None where there is nothing, or not all of it."""
    kept = path.read_bytes() if path.exists() else b""
    made = kept[_DIGEST_BYTES:]
    return made if sha256(made).digest() == kept[:_DIGEST_BYTES] else None


def _made(path: Path, make: Callable[[], bytes]) -> bytes:
    made = make()
    _write(path, sha256(made).digest() + made)
    return made


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(f"{path.suffix}.{os.getpid()}.{get_ident()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StoreUnavailable(f"{path.name} cannot be kept: {error.strerror}") from error
