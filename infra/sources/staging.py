"""A remote source's files in the node's cache: each appears whole and verified, or not at all."""

import fcntl
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from infra.clock import SystemClock
from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import SourceInvalid, SourceUnavailable, WeightsDamaged
from infra.sources.chunks import Chunk
from infra.sources.digests import matches
from infra.sources.download import Arriving, Download
from infra.sources.model_files import checked_name
from infra.sources.partial import PartialFile
from infra.sources.piece_digests import PIECE_BYTES, PieceDigests
from infra.sources.port import OnProgress, Remote

DIGEST_PREFIX: Final = "sha256:"
WEIGHTS_SUFFIX: Final = ".safetensors"
# Of the folder with the digests of pieces: they mean something for pieces of this length only.
DIGESTS_SUFFIX: Final = f".sha256-{PIECE_BYTES}"
_LOOK_S: Final = 0.05


class Shelf:
    """One source's place in the cache.

    `<digest>/` holds what is whole, `<digest>.partial/` what is on its way, `<digest>.lock` is
    held by the one process and thread that brings something, and let go by the kernel when it
    dies. Beside them stay the digests of the weights' pieces, so that a later download of the same
    content is proven piece by piece.
    """

    def __init__(self, resolved: ResolvedSource, cache_dir: Path) -> None:
        """Raises SourceInvalid for names that lead elsewhere."""
        for file in resolved.files:
            checked_name(file.path)
        self.resolved = resolved
        self.folder = cache_dir / _folder_name(resolved.digest)
        self.partial_folder = self.folder.with_suffix(".partial")
        self._digests = self.folder.with_suffix(DIGESTS_SUFFIX)

    @property
    def is_complete(self) -> bool:
        return not self.missing(self.resolved.files)

    @property
    def weights(self) -> tuple[SourceFile, ...]:
        """The files that are read in parts."""
        return tuple(file for file in self.resolved.files if file.path.endswith(WEIGHTS_SUFFIX))

    def missing(self, files: Sequence[SourceFile]) -> list[SourceFile]:
        """Those that are not here yet."""
        return [file for file in files if not self._has(file)]

    @contextmanager
    def locked(self, is_given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Waits for whoever brings files now. Raises SourceUnavailable where that is given up."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        pause = threading.Event()
        with self.folder.with_suffix(".lock").open("a") as file:
            while not _try_lock(file.fileno()):
                if is_given_up():
                    raise SourceUnavailable("the download was given up")
                pause.wait(_LOOK_S)
            yield

    def bring_small(self, remote: Remote) -> None:
        """Everything but the weights, one after another; holds the lock's owner up."""
        small = [file for file in self.resolved.files if file not in self.weights]
        for file in self.missing(small):
            self.partial_folder.mkdir(exist_ok=True)
            path = self.partial_folder / file.path
            remote.bring(file, path, lambda count: None)
            if not matches(path, file):
                path.unlink(missing_ok=True)
                raise SourceUnavailable(f"{file.path} arrived damaged", path=file.path)
            self.folder.mkdir(exist_ok=True)
            path.rename(self.folder / file.path)

    def partial(self, file: SourceFile) -> PartialFile:
        """Raises OSError where the disk has no room for it."""
        self.partial_folder.mkdir(exist_ok=True)
        return PartialFile(self.partial_folder / file.path, file.size)

    def known(self, file: SourceFile, remote: Remote) -> PieceDigests:
        """From an earlier download of the same content, here or elsewhere."""
        try:
            packed = (self._digests / file.path).read_bytes()
        except OSError:
            packed = b""
        found = PieceDigests.of(packed, size=file.size)
        return found or PieceDigests.of(remote.known(file), size=file.size)

    def publish(self, file: SourceFile, partial: PartialFile, remote: Remote) -> None:
        """The file is whole and proven; blocks until the disk has it."""
        self.folder.mkdir(exist_ok=True)
        digests = partial.digests()
        partial.publish(self.folder / file.path, self._digests / file.path)
        remote.on_proof(file, digests)

    def tidy(self) -> None:
        """All is here: what client libraries left beside the files goes."""
        shutil.rmtree(self.partial_folder, ignore_errors=True)

    def _has(self, file: SourceFile) -> bool:
        try:
            return (self.folder / file.path).stat().st_size == file.size
        except OSError:
            return False


def fetch(
    resolved: ResolvedSource, cache_dir: Path, remote: Remote, on_progress: OnProgress
) -> Path:
    """The folder `<cache_dir>/<digest>` with every file.

    One process downloads, others that want the same wait for it. What was verified before an
    interruption is kept and not downloaded again. Raises SourceUnavailable for damaged downloads
    and a disk that refuses, SourceInvalid for names that lead elsewhere.
    """
    shelf = Shelf(resolved, cache_dir)
    if not shelf.is_complete:
        with disk_errors(cache_dir), shelf.locked():
            shelf.bring_small(remote)
            try:
                _bring_weights(shelf, remote, on_progress)
            except WeightsDamaged:  # whoever lied is not asked again
                _bring_weights(shelf, remote, on_progress)
            shelf.tidy()
    on_progress(1.0)
    return shelf.folder


def _bring_weights(shelf: Shelf, remote: Remote, on_progress: OnProgress) -> None:
    """Straight into the files, which are mapped for that."""
    wanted = shelf.missing(shelf.weights)
    with ExitStack() as stack:
        arriving = []
        for file in wanted:
            partial = shelf.partial(file)
            stack.callback(partial.close)
            arriving.append(Arriving(file, partial.map(), partial, shelf.known(file, remote), True))

        def arrived(chunk: Chunk, memory: memoryview, digests: bytes, *, is_new: bool) -> None:
            if is_new:
                arriving[chunk.file].partial.save(chunk, memory, digests, is_mapped=True)

        download = Download(
            shelf.resolved.uri,
            arriving,
            remote,
            SystemClock.start(),
            on_progress,
            arrived,
        )
        try:
            download.start()
            download.finish()
        finally:
            download.close()
            for each in download.damaged():
                each.partial.forget()
        for each in arriving:
            shelf.publish(each.file, each.partial, remote)


@contextmanager
def disk_errors(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceUnavailable(
            f"cannot write {error.filename or cache_dir}: {error.strerror or error}",
            hint="check permissions and free space",
        ) from error


def _folder_name(digest: str) -> str:
    name = digest.removeprefix(DIGEST_PREFIX)
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise SourceInvalid(f"the source's digest is {digest[:100]!a}")
    return name


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
