"""Weights on their way into files of the cache that several processes map: one of them brings."""

import mmap
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog

from infra.contracts.revision import SourceFile
from infra.sources.chunks import Chunk
from infra.sources.incoming import IncomingStream
from infra.sources.port import OnProgress, Remote
from infra.sources.shared_files import SharedFiles
from infra.sources.staging import Shelf, disk_errors

log = structlog.get_logger()

_LOOK_S: Final = 0.002


class SharedStream(IncomingStream):
    """Every byte is brought once, whoever needs it."""

    def __init__(
        self,
        shelf: Shelf,
        files: Sequence[SourceFile],
        remote: Remote,
        on_progress: OnProgress,
        held: ExitStack,
    ) -> None:
        self.shared = SharedFiles(folder=shelf.partial_folder, files=tuple(files))
        self._keeper: threading.Thread | None = None
        super().__init__(shelf, files, remote, held)
        with self._held as opened:
            self._board = _new_board(self.shared)
            self._held = opened.pop_all()
        self._begin(on_progress, self._arrived)

    def finish(self) -> None:
        self._download.finish()
        self._download.close()
        for each in self._arriving:
            each.partial.seal()
        self._keeper = threading.Thread(target=self._publish, name="weights-keeper", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.join()
            return
        with self._held:
            self._download.close()
            for damaged in self._download.damaged():
                damaged.partial.forget()

    def _arrived(self, chunk: Chunk, memory: memoryview, digests: bytes, *, is_new: bool) -> None:
        if is_new:
            with disk_errors(self._shelf.folder):
                partial = self._arriving[chunk.file].partial
                partial.save(chunk, memory, digests, is_mapped=True)
        self._board[chunk.index] = 1

    def _publish(self) -> None:
        with self._held:
            try:
                for each in self._arriving:
                    self._shelf.publish(each.file, each.partial, self._remote)
                self._shelf.tidy()
            except OSError as error:
                log.warning("weights.not_kept", why=error.strerror or str(error))


class FollowedStream:
    """The stream of another process, which ends this one when it ends; see WeightStream.

    Its files are mapped, and nothing is read but what is asked for.
    """

    shared = None
    origin = "shared"

    def __init__(self, shared: SharedFiles) -> None:
        """Raises OSError where the files are gone."""
        self._chunks = shared.chunks
        self._index = {file.path: index for index, file in enumerate(shared.files)}
        self._files = [_mapped(shared.folder / file.path) for file in shared.files]
        self._board = _mapped(shared.board)
        self._pause = threading.Event()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._index)

    def memory(self, name: str) -> memoryview:
        return self._files[self._index[name]]

    def wait(self, name: str, start: int, stop: int) -> None:
        file = self._index[name]
        for chunk in self._chunks:
            if chunk.file == file and chunk.offset < stop and chunk.stop > start:
                while not self._board[chunk.index]:
                    self._pause.wait(_LOOK_S)

    def finish(self) -> None:
        """The proof is the other's, who serves nothing before it."""

    def close(self) -> None: ...


def _new_board(shared: SharedFiles) -> mmap.mmap:
    shared.board.unlink(missing_ok=True)
    descriptor = os.open(shared.board, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        size = max(1, len(shared.chunks))
        os.posix_fallocate(descriptor, 0, size)
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED)
    finally:
        os.close(descriptor)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return memoryview(b"")
        return memoryview(
            mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        )
