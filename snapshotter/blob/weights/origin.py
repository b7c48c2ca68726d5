"""One file of a model's source as a source of chunks."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from infra.contracts.revision import SourceFile
from infra.errors import SourceInvalid, SourceUnavailable
from infra.sources.port import RangeReader, Remote
from snapshotter.index.chunk_table import Chunk


class WeightsOrigin:
    """Reads with as many readers as there are threads that ask at once; closed once."""

    name = "origin"

    def __init__(self, remote: Remote, file: SourceFile) -> None:
        self._remote = remote
        self._file = file
        self._idle: SimpleQueue[RangeReader] = SimpleQueue()
        self._is_closed = False

    def chunks(self, run: Sequence[Chunk]) -> Iterator[bytes]:
        begin = run[0].source_offset
        data = memoryview(bytearray(run[-1].source_end - begin))
        self._read(begin, data)
        for chunk in run:
            yield bytes(data[chunk.source_offset - begin : chunk.source_end - begin])

    def _read(self, offset: int, memory: memoryview) -> None:
        reader = self._reader()
        try:
            got = reader.read_into(self._file, offset, memory)
        except SourceInvalid as error:  # for the worker, which reads it itself, to say
            raise SourceUnavailable(error.detail) from error
        finally:
            self._idle.put(reader)
            if self._is_closed:  # meanwhile, for another node
                self._hang_up()
        if got != len(memory):
            raise SourceUnavailable(f"{self._file.path}: the line broke")

    def _reader(self) -> RangeReader:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._remote.open_reader()

    def close(self) -> None:
        """Ends the connections that nobody reads from, and later ones after their use."""
        self._is_closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()
