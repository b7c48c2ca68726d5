"""What a process is told that follows a stream of weights which another one brings."""

from pathlib import Path
from typing import Final

from infra.contracts.base import Contract
from infra.contracts.revision import SourceFile
from infra.sources.chunks import Chunk, plan_chunks

_BOARD: Final = ".arrived"


class SharedFiles(Contract):
    """The files that are on their way, and where they are."""

    folder: Path
    files: tuple[SourceFile, ...]

    @property
    def board(self) -> Path:
        """A file with a byte for each chunk, which says that it has arrived."""
        return self.folder / _BOARD

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return plan_chunks([file.size for file in self.files])
