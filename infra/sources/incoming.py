"""Files of weights while they come: what all streams that download have in common."""

from collections.abc import Sequence
from contextlib import ExitStack

from infra.clock import SystemClock
from infra.contracts.revision import SourceFile
from infra.sources.download import Arriving, Download, OnArrival
from infra.sources.port import OnProgress, Remote
from infra.sources.staging import Shelf


class IncomingStream:
    """See infra.sources.port.WeightStream; who derives from it says what becomes of what came."""

    _download: Download

    def __init__(
        self,
        shelf: Shelf,
        files: Sequence[SourceFile],
        remote: Remote,
        held: ExitStack,
        *,
        places: Sequence[memoryview] | None = None,
    ) -> None:
        """Each file comes into its place, or into the mapped file of the cache where there are
        none. `held` is let go when all files are in the cache, or no more of them will be.
        """
        self._index = {file.path: index for index, file in enumerate(files)}
        self._shelf = shelf
        self._remote = remote
        self._arriving: list[Arriving] = []
        is_mapped = places is None
        with held:
            for index, file in enumerate(files):
                partial = shelf.partial(file)
                held.callback(partial.close)
                memory = partial.map() if places is None else places[index]
                known = shelf.known(file, remote)
                self._arriving.append(Arriving(file, memory, partial, known, is_mapped=is_mapped))
            self._held = held.pop_all()

    def _begin(self, on_progress: OnProgress, on_arrival: OnArrival) -> None:
        clock = SystemClock.start()
        self._download = Download(
            self._shelf.resolved.uri, self._arriving, self._remote, clock, on_progress, on_arrival
        )
        self._download.start()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._index)

    @property
    def origin(self) -> str:
        return self._remote.came_from()

    def memory(self, name: str) -> memoryview:
        return self._arriving[self._index[name]].memory

    def wait(self, name: str, start: int, stop: int) -> None:
        self._download.wait(self._index[name], start, stop)
