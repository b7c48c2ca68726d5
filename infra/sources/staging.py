"""Brings a resolved source's files into the cache: all of them verified, or none visible."""

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import SourceInvalid, SourceUnavailable
from infra.sources.digests import FileDigests, git_blob_sha1
from infra.sources.model_files import checked_name
from infra.sources.port import OnProgress

OnBytes = Callable[[int], None]
Download = Callable[[SourceFile, Path, OnBytes], None]

DIGEST_PREFIX: Final = "sha256:"


def stage(
    resolved: ResolvedSource, cache_dir: Path, download: Download, on_progress: OnProgress
) -> Path:
    """The folder `<cache_dir>/<digest>` with every file; `download` is called for those missing.

    One process downloads, others that want the same wait for it. What was verified before an
    interruption is kept and not downloaded again. Raises SourceUnavailable for damaged downloads
    and a disk that refuses, SourceInvalid for names that lead elsewhere.
    """
    for file in resolved.files:
        checked_name(file.path)
    folder = cache_dir / _folder_name(resolved.digest)
    if _is_complete(folder, resolved.files):
        on_progress(1.0)
        return folder
    with _disk_errors(cache_dir), _locked(folder.with_suffix(".lock")):
        if not _is_complete(folder, resolved.files):
            partial = folder.with_suffix(".partial")
            _fill(partial, resolved, download, on_progress)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    on_progress(1.0)
    return folder


def _folder_name(digest: str) -> str:
    name = digest.removeprefix(DIGEST_PREFIX)
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise SourceInvalid(f"the source's digest is {digest[:100]!a}")
    return name


def _is_complete(folder: Path, files: tuple[SourceFile, ...]) -> bool:
    try:
        return all((folder / file.path).stat().st_size == file.size for file in files)
    except OSError:
        return False


def _fill(
    folder: Path, resolved: ResolvedSource, download: Download, on_progress: OnProgress
) -> None:
    folder.mkdir(exist_ok=True)
    total = max(1, resolved.total_bytes)
    done = 0
    for file in resolved.files:
        path = folder / file.path
        if not (path.is_file() and matches(path, file)):
            _bring(file, path, download, _fraction_after(done, total, on_progress))
        done += file.size
        on_progress(min(1.0, done / total))
    for extra in folder.iterdir():  # what a client library left beside the files
        if extra.is_dir():
            shutil.rmtree(extra)


def _fraction_after(done: int, total: int, on_progress: OnProgress) -> OnBytes:
    arrived = 0

    def on_bytes(count: int) -> None:
        nonlocal arrived
        arrived += count
        on_progress(min(1.0, (done + arrived) / total))

    return on_bytes


def _bring(file: SourceFile, path: Path, download: Download, on_bytes: OnBytes) -> None:
    download(file, path, on_bytes)
    if not matches(path, file):
        path.unlink(missing_ok=True)
        raise SourceUnavailable(f"{file.path} arrived damaged", path=file.path)


def matches(path: Path, file: SourceFile) -> bool:
    """Whether the file has the size and, where it can be computed, the digest it should have."""
    if path.stat().st_size != file.size:
        return False
    match (file.digest or "").partition(":")[0]:
        case "sha256":
            return FileDigests().sha256(path) == file.digest
        case "git-sha1":
            return git_blob_sha1(path) == file.digest
        case _:  # an etag: checked by the store's adapter as it downloads
            return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process and thread at a time, and let go by the kernel when it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_errors(cache_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceUnavailable(
            f"cannot write {error.filename or cache_dir}: {error.strerror or error}",
            hint="check permissions and free space",
        ) from error
