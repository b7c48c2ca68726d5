"""The weights of a remote source on their way into memory, and from there into the cache."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import Enum, auto
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import structlog

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import WeightsDamaged
from infra.sources.chunks import Chunk
from infra.sources.download import Arriving
from infra.sources.incoming import IncomingStream
from infra.sources.landing import Landing, landing_bytes
from infra.sources.port import Land, OnProgress, OpenedSource, Remote
from infra.sources.shared_stream import SharedStream
from infra.sources.staging import Shelf, disk_errors, fetch

log = structlog.get_logger()

LOWEST_PRIORITY: Final = 19
FROM_CACHE: Final = "cache"
HASTE_S: Final = 5.0  # a download that takes longer is written to the cache meanwhile


def open_source(
    resolved: ResolvedSource,
    cache_dir: Path,
    remote: Remote,
    land: Land,
    on_progress: OnProgress,
    *,
    is_shared: bool = False,
) -> OpenedSource:
    """The source from the cache, or with its weights on their way to where `land` has room.

    Where it has none they are fetched first. Where they are `is_shared` they come into the files
    of the cache, which take no room. Raises as `fetch` does.
    """
    shelf = Shelf(resolved, cache_dir)
    with ExitStack() as held:
        if shelf.is_complete:
            return OpenedSource(shelf.folder, FROM_CACHE)
        with disk_errors(cache_dir):
            held.enter_context(shelf.locked())
            shelf.bring_small(remote)
            wanted = shelf.missing(shelf.weights)
            if not wanted:  # another process brought them meanwhile
                return OpenedSource(shelf.folder, FROM_CACHE)
            if is_shared:
                shared = SharedStream(shelf, wanted, remote, on_progress, held.pop_all())
                return OpenedSource(shelf.folder, shared.origin, shared)
            landing = land(landing_bytes([file.size for file in wanted]))
            if landing is not None:
                stream = SourceStream(shelf, wanted, remote, landing, on_progress, held.pop_all())
                return OpenedSource(shelf.folder, stream.origin, stream)
    return OpenedSource(fetch(resolved, cache_dir, remote, on_progress), remote.came_from())


class SourceStream(IncomingStream):
    """Into memory that is there for it, and from there into the cache."""

    shared = None

    def __init__(
        self,
        shelf: Shelf,
        files: Sequence[SourceFile],
        remote: Remote,
        landing: Landing,
        on_progress: OnProgress,
        held: ExitStack,
    ) -> None:
        self._landing = landing
        with held:
            places = landing.places([file.size for file in files])
            super().__init__(shelf, files, remote, held.pop_all(), places=places)
        self._keeper = _Keeper(shelf, self._arriving, remote, landing, self._held.close)
        landing.touch_beside()
        self._keeper.start()
        self._begin(on_progress, self._keeper.add)

    def finish(self) -> None:
        try:
            self._download.finish()
        except WeightsDamaged:
            self._keeper.forget(self._download.damaged())
            raise
        self._download.close()
        self._keeper.publish()

    def close(self) -> None:
        self._landing.drop()
        self._download.close()
        self._keeper.close()


class _Keeper:
    """Writes what has arrived to the cache, when the download is over or takes long.

    A short one is a cold start that needs every core: a thread that hashes and writes beside it
    costs a third of the pace, low priority or not. Of a long one an interruption loses little.

    What it has written takes the place of what was in memory, so that the weights of a replica
    are one copy for the whole node. A disk that refuses costs the next start its cache, and this
    one nothing.
    """

    def __init__(
        self,
        shelf: Shelf,
        arriving: Sequence[Arriving],
        remote: Remote,
        landing: Landing,
        let_go: Callable[[], None],
    ) -> None:
        self._shelf = shelf
        self._remote = remote
        self._landing = landing
        self._arriving = arriving
        self._let_go = let_go
        self._queue: SimpleQueue[tuple[Chunk, memoryview, bytes] | _Word] = SimpleQueue()
        self._is_closed = False
        self._damaged: Sequence[Arriving] = ()
        self._may_write = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="weights-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, chunk: Chunk, memory: memoryview, digests: bytes, *, is_new: bool) -> None:
        """The chunk has arrived."""
        if is_new:
            self._queue.put((chunk, memory, digests))

    def publish(self) -> None:
        """All has arrived, and is what was pinned."""
        self._queue.put(_Word.PUBLISH)
        self._may_write.set()

    def forget(self, damaged: Sequence[Arriving]) -> None:
        """All has arrived, and some of it is not what was pinned."""
        self._damaged = damaged
        self._end()

    def close(self) -> None:
        """What is not written yet will not be."""
        self._end()
        self._thread.join()

    def _end(self) -> None:
        self._is_closed = True
        self._may_write.set()
        self._queue.put(_Word.END)

    def _keep(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        self._may_write.wait(HASTE_S)
        try:
            self._write()
        except OSError as error:
            log.warning("weights.not_kept", why=error.strerror or str(error))
            while not isinstance(self._queue.get(), _Word):
                pass  # the download still looks into the files
        finally:
            self._let_go()

    def _write(self) -> None:
        while not isinstance(word := self._queue.get(), _Word):
            if not self._is_closed:
                chunk, memory, digests = word
                partial = self._arriving[chunk.file].partial
                partial.save(chunk, memory, digests, is_mapped=False)
        if word is _Word.PUBLISH:
            for number, each in enumerate(self._arriving):
                self._shelf.publish(each.file, each.partial, self._remote)
                self._landing.become(number, self._shelf.folder / each.file.path)
            self._shelf.tidy()
        for damaged in self._damaged:
            damaged.partial.forget()


class _Word(Enum):
    """What a keeper is told besides chunks."""

    PUBLISH = auto()
    END = auto()
