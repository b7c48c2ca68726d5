"""The verified chunks of this node, shared by image layers and weights."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Final

import structlog

from infra.errors import ImageInvalid
from snapshotter.blob.stored_blob import BlobRef, StoredBlob, hex_of
from snapshotter.index.chunk_table import UNKNOWN, Chunk, ChunkTable

log = structlog.get_logger()

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Location:
    """Where a verified chunk lies, for `sendfile` or another process."""

    blob: str
    chunk: Chunk


class ChunkStore:
    """A folder with one folder a blob; one process owns it, any of its threads may use it.

    Blobs that are open are pinned; of the others the least recently used goes first when the
    capacity or the disk is exhausted.
    """

    def __init__(self, folder: Path, *, capacity_bytes: int, boot_id: str) -> None:
        """Takes the folder, with what it holds. Raises BlockingIOError if another process has."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._capacity_bytes = capacity_bytes
        self._boot_id = boot_id
        self._lock = RLock()  # guards the dictionaries below and the order of eviction
        self._open: dict[str, StoredBlob] = {}  # least recently used first
        self._pins: dict[str, int] = {}
        self._by_digest: dict[bytes, list[tuple[str, int]]] = {}
        self._owner = os.open(folder / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._owner)
            raise
        for path in sorted(self._blob_folders(), key=lambda path: path.stat().st_mtime):
            self._take_over(path)

    def _blob_folders(self) -> Iterator[Path]:
        return (path for path in self._folder.iterdir() if path.is_dir())

    def _take_over(self, path: Path) -> None:
        try:
            table = ChunkTable.parse((path / "table").read_bytes())
            self._load(BlobRef(f"sha256:{path.name}", table))
        except (OSError, ImageInvalid) as error:
            log.warning("store.blob_discarded", blob=path.name, error=str(error))
            shutil.rmtree(path, ignore_errors=True)

    def open(self, ref: BlobRef) -> StoredBlob:
        """The blob, pinned until `release`; opens nest."""
        with self._lock:
            stored = self._open.get(ref.digest)
            if stored is not None and not self._has_as(stored, ref):
                if self._pins.get(ref.digest):
                    raise ImageInvalid(f"{ref.digest} is in use with another index")
                self._forget(ref.digest)
                stored = None
            if stored is None:
                stored = self._load(ref)
            self._open[ref.digest] = self._open.pop(ref.digest)
            self._pins[ref.digest] = self._pins.get(ref.digest, 0) + 1
            os.utime(self._folder / ref.hex)
            return stored

    def _has_as(self, stored: StoredBlob, ref: BlobRef) -> bool:
        """Whether what is kept can be used by that table, which may know more of it than is known
        here, or less.
        """
        if stored.table.digest == ref.table.digest:
            return True
        if stored.table.cut != ref.table.cut or stored.table.is_proven == ref.table.is_proven:
            return False
        if ref.table.is_proven:
            self._learn(stored, ref)
        return True

    def learn(self, ref: BlobRef) -> None:
        """The digests of a blob's chunks are known now; a blob that is cut otherwise stays."""
        with self._lock:
            stored = self._open.get(ref.digest)
            if stored is not None:
                self._has_as(stored, ref)

    def _learn(self, stored: StoredBlob, ref: BlobRef) -> None:
        stored.learn(ref)
        for chunk in ref.table:
            self._by_digest.setdefault(chunk.digest, []).append((ref.digest, chunk.index))

    def release(self, digest: str) -> None:
        """Takes back one `open`."""
        with self._lock:
            self._pins[digest] -= 1
            if not self._pins[digest]:
                del self._pins[digest]
                self._make_room(0)

    @contextmanager
    def opened(self, ref: BlobRef) -> Iterator[StoredBlob]:
        """The blob, pinned for a while."""
        stored = self.open(ref)
        try:
            yield stored
        finally:
            self.release(ref.digest)

    def has(self, digest: str, index: int) -> bool:
        """Whether a chunk of a blob is here and verified."""
        with self._lock:
            stored = self._open.get(digest)
            return stored is not None and stored.has(index)

    def put(self, ref: BlobRef, chunk: Chunk, data: bytes, *, is_first_hand: bool = False) -> bool:
        """Keeps a chunk of a blob that is open; False if there is no room for it.

        `is_first_hand`: it comes from the origin.

        Raises ValueError when `data` is not what the table says, whether it is kept or not.
        """
        stored = self._open[ref.digest]
        if stored.has(chunk.index):
            return True
        verified_by = stored.verify(chunk, data)
        if not self._make_room(chunk.length):
            return False
        try:
            stored.write(chunk, data, verified_by, is_first_hand=is_first_hand)
        except OSError as error:
            if error.errno not in _FULL or not self._make_room(chunk.length, is_disk_full=True):
                log.warning("store.write_failed", blob=ref.digest, error=error.strerror)
                return False
            return self.put(ref, chunk, data, is_first_hand=is_first_hand)
        return True

    def find(self, chunk_digest: bytes) -> Location | None:
        """Where any blob holds a chunk of that content, verified."""
        with self._lock:
            for blob, index in self._by_digest.get(chunk_digest, ()):
                stored = self._open[blob]
                if stored.has(index):
                    return Location(blob, stored.table[index])
        return None

    def read_chunk(self, chunk_digest: bytes) -> bytes | None:
        """The bytes of a chunk that any blob holds, hashed again; what this disk has spoiled since
        is not here any more.
        """
        with self._lock:
            location = self.find(chunk_digest)
            if location is None:
                return None
            chunk = location.chunk
            stored = self._open[location.blob]
            data = stored.pread(chunk.offset, chunk.length)
        if chunk.is_genuine(data):
            return data
        log.error("store.chunk_spoiled", blob=location.blob, chunk=chunk.index)
        with self._lock:
            if self._open.get(location.blob) is stored:
                stored.lose(chunk.index)
        return None

    def data_path(self, digest: str) -> Path:
        """Where the bytes of a blob are, those that are here."""
        return self._folder / hex_of(digest) / "data"

    def empty(self, digest: str) -> None:
        """Nothing of a blob that is open is right."""
        self._open[digest].empty()

    def has_room(self, num_bytes: int) -> bool:
        """Whether that much more could be kept without evicting anything."""
        return self.used_bytes + num_bytes <= self._capacity_bytes

    @property
    def used_bytes(self) -> int:
        """What the chunks take that are here."""
        with self._lock:
            return sum(stored.kept_bytes for stored in self._open.values())

    def blobs(self) -> dict[str, StoredBlob]:
        """Everything that is here, pinned or not."""
        with self._lock:
            return dict(self._open)

    def close(self) -> None:
        """Ends the use of the folder; what is in it stays."""
        with self._lock:
            for stored in self._open.values():
                stored.close()
            self._open.clear()
            os.close(self._owner)

    def _load(self, ref: BlobRef) -> StoredBlob:
        stored = self._made(ref)
        self._open[ref.digest] = stored
        for chunk in ref.table:
            if chunk.digest != UNKNOWN:
                self._by_digest.setdefault(chunk.digest, []).append((ref.digest, chunk.index))
        return stored

    def _made(self, ref: BlobRef) -> StoredBlob:
        """Its files; of a disk that is full others go first. Raises OSError."""
        while True:
            try:
                return StoredBlob(self._folder / ref.hex, ref, boot_id=self._boot_id)
            except OSError as error:
                if error.errno not in _FULL or not self._make_room(0, is_disk_full=True):
                    raise

    def _make_room(self, length: int, *, is_disk_full: bool = False) -> bool:
        """Evicts until `length` bytes fit (and at least one blob, if the disk is full)."""
        with self._lock:
            must_evict = is_disk_full
            while must_evict or self.used_bytes + length > self._capacity_bytes:
                idle = next((blob for blob in self._open if not self._pins.get(blob)), None)
                if idle is None:
                    return False
                self._forget(idle)
                must_evict = False
            return True

    def _forget(self, digest: str) -> None:
        stored = self._open.pop(digest)
        for chunk in stored.table:
            places = self._by_digest.get(chunk.digest)
            if places is None:  # its digest is unknown
                continue
            places.remove((digest, chunk.index))
            if not places:
                del self._by_digest[chunk.digest]
        stored.close()
        shutil.rmtree(self._folder / stored.ref.hex, ignore_errors=True)
        log.info("store.evicted", blob=digest)
