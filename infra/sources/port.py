"""The port of model sources: pin what a URI names, then bring its files here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from infra.contracts.revision import ModelFacts, ResolvedSource, SourceFile
from infra.sources.landing import Landing
from infra.sources.patience import Patience
from infra.sources.shared_files import SharedFiles

OnBytes = Callable[[int], None]
Bring = Callable[[SourceFile, Path, OnBytes], None]
OnProgress = Callable[[float], None]
Land = Callable[[int], Landing | None]


class RangeReader(Protocol):
    """Reads parts of a remote source's files; each belongs to one thread."""

    def read_into(self, file: SourceFile, offset: int, memory: memoryview) -> int:
        """Bytes read of those asked for: fewer where the line broke or stalled.

        May be repeated. Raises SourceUnavailable when none came, SourceInvalid when the source has
        other bytes than those that were pinned.
        """
        ...

    def interrupt(self) -> None:
        """From any thread: the read in progress ends soon."""
        ...

    def close(self) -> None: ...


class WeightStream(Protocol):
    """Weights that are on their way into memory; any thread may ask.

    `wait` and `finish` raise WeightsUnavailable and SourceChanged, which end the stream.
    """

    @property
    def names(self) -> frozenset[str]:
        """The files that come this way; all others are in the folder."""
        ...

    @property
    def origin(self) -> str:
        """Where what has come until now came from."""
        ...

    @property
    def shared(self) -> SharedFiles | None:
        """What other processes follow it by; None where it lands in memory of this one's own."""
        ...

    def memory(self, name: str) -> memoryview:
        """Where the whole file will be; nobody else writes there."""
        ...

    def wait(self, name: str, start: int, stop: int) -> None:
        """Returns when these bytes of the file are there. They may be computed with, not served."""
        ...

    def finish(self) -> None:
        """Returns when every byte is there and is what was pinned; from now on they may be served.

        The cache is filled beside what follows.
        """
        ...

    def close(self) -> None:
        """Ends it, wherever it is, and lets everything go. For a stream that did not finish."""
        ...


OpenReader = Callable[[], RangeReader]
Packed = bytes  # digests of a file's pieces, see infra.sources.piece_digests

UNREACHED: Final = "check that the source is up and that this machine reaches it, then try again"


def nobody_lied(file: SourceFile) -> None:
    """Bytes come from the source alone: there is nobody else to be asked the next time."""


def nobody_knows(file: SourceFile) -> Packed:
    """Nobody here has proven the file before."""
    return b""


def nobody_asks(file: SourceFile, digests: Packed) -> None:
    """What was proven here is of use here alone."""


@dataclass(frozen=True, slots=True)
class Remote:
    """How the files of one source are had: small ones whole, weights in parts.

    `came_from` says where the parts that were read came from; `on_damage` hears of a file whose
    parts, all together, are not what was pinned. `known` are the digests of its pieces where
    somebody has proven the file before, else none; `on_proof` hears of those that were made here.
    """

    bring: Bring
    open_reader: OpenReader
    patience: Patience
    came_from: Callable[[], str]
    on_damage: Callable[[SourceFile], None] = nobody_lied
    known: Callable[[SourceFile], Packed] = nobody_knows
    on_proof: Callable[[SourceFile, Packed], None] = nobody_asks


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source of which everything can be read now, weights perhaps as they come."""

    folder: Path
    origin: str
    stream: WeightStream | None = None


Share = Callable[[ResolvedSource, Remote], Remote]


def unshared(resolved: ResolvedSource, remote: Remote) -> Remote:
    """What comes from the source is read from it, whoever else has it."""
    return remote


class RemoteSource(Protocol):
    """One kind of source that is not on this machine; blocks, from any thread."""

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        """As ModelSource.resolve."""
        ...

    def remote(self, resolved: ResolvedSource) -> Remote:
        """Raises SourceInvalid for what is not of this source."""
        ...


class ModelSource(Protocol):
    """One kind of source; both methods block and may be called from any thread.

    Both raise SourceInvalid when what the URI names is missing, malformed or unsafe (trying again
    is useless) and SourceUnavailable when the source cannot be reached or refuses us.
    """

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        """Pins the content and reads config and tokenizer, never the weights of a remote source.

        May be repeated: equal content gives an equal digest. Raises UnsupportedModel, too.
        """
        ...

    def fetch(self, resolved: ResolvedSource, cache_dir: Path, on_progress: OnProgress) -> Path:
        """The folder that holds exactly the resolved files, verified against their digests.

        May be repeated and called at once by many processes: one downloads, the others wait. A
        partial download is never visible and is resumed file by file. `on_progress` hears the
        fraction of bytes that are here.
        """
        ...

    def open(
        self,
        resolved: ResolvedSource,
        cache_dir: Path,
        land: Land,
        on_progress: OnProgress,
        *,
        is_shared: bool = False,
    ) -> OpenedSource:
        """As `fetch`, without waiting for the weights of a remote source.

        They come into memory that `land` has for so many bytes; where it has none, into the cache.
        Where they are `is_shared`, other processes may follow the stream.
        """
        ...
