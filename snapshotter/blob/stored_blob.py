"""One blob on this node's disk: a sparse file of verified chunks, and which of them are there."""

import mmap
import os
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from struct import Struct
from threading import Lock
from typing import Final

import structlog

from infra.errors import ImageInvalid
from snapshotter.index.chunk_table import UNKNOWN, Chunk, ChunkTable

log = structlog.get_logger()

_HEADER: Final = Struct("<8s32s40s")  # magic, sha256 of the table, boot id
_MAGIC: Final = b"FLCHUNK1"
_STATES_AT: Final = 4096
_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class BlobRef:
    """What a store must know of a blob: its name (`sha256:…` of its source) and its chunks."""

    digest: str
    table: ChunkTable

    @property
    def hex(self) -> str:
        return hex_of(self.digest)


def hex_of(digest: str) -> str:
    """The 64 digits of `sha256:…`; raises ImageInvalid for anything else."""
    name = digest.removeprefix("sha256:")
    if len(name) != 64 or not set(name) <= _HEX or name == digest:
        raise ImageInvalid(f"the digest is {digest[:100]!a}")
    return name


class ChunkState(IntEnum):
    """A byte of the state file."""

    ABSENT = 0
    VERIFIED = 1
    DOUBTED = 2  # verified before the machine went down: the disk may have lost it


class StoredBlob:
    """Verified chunks of one blob; any thread may use it.

    A chunk's byte in the state file is set after its data was written. Both live in the page
    cache, so a process that is killed loses nothing; what was there when the *machine* went down
    is hashed again before it is believed.
    """

    def __init__(self, folder: Path, ref: BlobRef, *, boot_id: str) -> None:
        """Opens or makes `folder`; forgets what it holds if that was cut by another table."""
        self.ref = ref
        self.digest = ref.digest
        self.table = ref.table
        self._folder = folder
        self._boot_id = boot_id.encode()[:40]
        # Guards kept_bytes, the states that it sums up, and the next two.
        self._lock = Lock()
        # Chunks without a digest, by who gave them to this process: the origin, and another node.
        self._first_hand: set[int] = set()
        self._hearsay: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)
        identity = self._identity()
        self.descriptor = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._states = self._open_states(folder / "state", identity)
            os.ftruncate(self.descriptor, ref.table.size)
            if not (folder / "table").exists():
                self._write_table()
        except BaseException:
            os.close(self.descriptor)
            raise
        self.kept_bytes = sum(chunk.length for chunk in self.table if self._state(chunk.index))

    def _open_states(self, path: Path, identity: bytes) -> mmap.mmap:
        states = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            known = os.pread(states, _HEADER.size, 0)
            if known[:40] != identity[:40]:
                os.ftruncate(states, 0)
                os.ftruncate(self.descriptor, 0)
                (path.parent / "table").unlink(missing_ok=True)
            # bytes are reserved: a full disk must not become a SIGBUS of the mapping
            os.posix_fallocate(states, 0, _STATES_AT + len(self.table))
            mapping = mmap.mmap(states, _STATES_AT + len(self.table))
        finally:
            os.close(states)
        if known[:40] == identity[:40] and known != identity:
            doubted = bytes(ChunkState.DOUBTED if state else 0 for state in mapping[_STATES_AT:])
            mapping[_STATES_AT:] = doubted
        mapping[: len(identity)] = identity
        return mapping

    def has(self, index: int) -> bool:
        """Whether the chunk is here and verified; one that is doubted is hashed now."""
        match self._state(index):
            case ChunkState.VERIFIED:
                return True
            case ChunkState.DOUBTED:
                chunk = self.table[index]
                data = self.pread(chunk.offset, chunk.length)
                is_genuine = chunk.digest != UNKNOWN and chunk.is_genuine(data)
                self._set(index, ChunkState.VERIFIED if is_genuine else ChunkState.ABSENT)
                return is_genuine
            case _:
                return False

    def may_give(self, index: int) -> bool:
        """Whether other nodes may have the chunk: it is verified by its digest, or where nobody
        knows that yet, it was read from the origin by this very process and by nobody else."""
        is_known = self.table[index].digest != UNKNOWN  # first: they may be learned meanwhile
        with self._lock:
            is_first_hand = index in self._first_hand and index not in self._hearsay
        return (is_known or is_first_hand) and self.has(index)

    def learn(self, ref: BlobRef) -> None:
        """The digests of all chunks are known from now on; those that are here are hashed again.

        `ref` cuts the blob as it is cut. A disk that has no room for them costs what is here of
        the blob at the next start of the process.
        """
        assert ref.table.cut == self.table.cut, "the chunks are the same"
        with self._lock:
            self.ref, self.table = ref, ref.table
            states = self._states[_STATES_AT:]
            self._states[_STATES_AT:] = bytes(ChunkState.DOUBTED if it else 0 for it in states)
            identity = self._identity()
            self._states[: len(identity)] = identity
            try:  # whoever finds the old table beside the new header begins the blob anew
                self._write_table()
            except OSError as error:
                log.warning("store.table_not_kept", blob=self.digest, error=error.strerror)

    def _identity(self) -> bytes:
        return _HEADER.pack(_MAGIC, self.table.digest, self._boot_id)

    def _write_table(self) -> None:
        partial = self._folder / "table.partial"
        partial.write_bytes(self.table.packed)
        partial.rename(self._folder / "table")

    def verify(self, chunk: Chunk, data: bytes) -> ChunkTable:
        """The table by which it is right; raises ValueError for wrong bytes."""
        table = self.table
        if not table[chunk.index].is_genuine(data):
            raise ValueError(f"chunk {chunk.index} of {self.digest} is not what the index says")
        return table

    def write(
        self, chunk: Chunk, data: bytes, verified_by: ChunkTable, *, is_first_hand: bool = False
    ) -> None:
        """Keeps a chunk. Raises OSError where the disk refuses.

        `is_first_hand`: it comes from the origin. Two may write one chunk at once: then it counts
        as hearsay if one of them does.
        """
        if chunk.digest == UNKNOWN:
            with self._lock:
                (self._first_hand if is_first_hand else self._hearsay).add(chunk.index)
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += os.pwrite(self.descriptor, view[written:], chunk.offset + written)
        with self._lock:  # digests may have been learned meanwhile
            is_verified = self.table is verified_by
            self._change(chunk.index, ChunkState.VERIFIED if is_verified else ChunkState.DOUBTED)

    def pread(self, offset: int, length: int) -> bytes:
        """Bytes of the file; meaningful only where every chunk is verified."""
        return os.pread(self.descriptor, length, offset)

    def lose(self, index: int) -> None:
        """The chunk is not here any more."""
        self._set(index, ChunkState.ABSENT)

    def empty(self) -> None:
        """None of it is here any more; who reads it meanwhile may read anything."""
        for chunk in self.table:
            self.lose(chunk.index)
        with self._lock:
            self._first_hand.clear()
            self._hearsay.clear()

    def close(self) -> None:
        self._states.close()
        os.close(self.descriptor)

    def _state(self, index: int) -> int:
        return self._states[_STATES_AT + index]

    def _set(self, index: int, state: ChunkState) -> None:
        with self._lock:
            self._change(index, state)

    def _change(self, index: int, state: ChunkState) -> None:
        if bool(self._state(index)) != bool(state):
            length = self.table[index].length
            self.kept_bytes += length if state else -length
        self._states[_STATES_AT + index] = state
