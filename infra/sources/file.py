"""Models in a folder of this machine: `file:///models/chat`."""

import os
import stat
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.contracts.revision import ModelFacts, ResolvedSource, SourceFile
from infra.errors import SourceChanged, SourceInvalid
from infra.sources.digests import FileDigests, content_digest
from infra.sources.model_files import MAX_LISTED, checked_name, describe_model
from infra.sources.port import Land, OnProgress, OpenedSource


class FileSource:
    """Used in place: nothing is copied, so the files must stay as they were deployed.

    Symbolic links are followed to regular files inside the folder; of the hub's own cache
    (`models--org--repo/snapshots/<commit>`) also to the blobs of the same repository.
    """

    def __init__(self) -> None:
        self._digests = FileDigests()

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        folder = _folder(uri)
        sizes = _sizes(folder)
        names, facts = describe_model(sizes, lambda name: _inside(folder, name).read_bytes())
        files = tuple(self._pinned(folder, name) for name in names)
        digest = content_digest([f"{file.path} {file.size} {file.digest}" for file in files])
        return ResolvedSource(uri=folder.as_uri(), digest=digest, files=files), facts

    def fetch(self, resolved: ResolvedSource, cache_dir: Path, on_progress: OnProgress) -> Path:
        """The folder itself, after a look at each file; one touched since is read again."""
        folder = _folder(resolved.uri)
        for file in resolved.files:
            self._check_unchanged(folder, file)
        on_progress(1.0)
        return folder

    def open(
        self,
        resolved: ResolvedSource,
        cache_dir: Path,
        land: Land,
        on_progress: OnProgress,
        *,
        is_shared: bool = False,
    ) -> OpenedSource:
        return OpenedSource(self.fetch(resolved, cache_dir, on_progress), "mmap")

    def _pinned(self, folder: Path, name: str) -> SourceFile:
        path = _inside(folder, name)
        try:
            digest = self._digests.sha256(path)
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        return SourceFile(
            path=name, size=status.st_size, digest=digest, modified_ns=status.st_mtime_ns
        )

    def _check_unchanged(self, folder: Path, file: SourceFile) -> None:
        path = _inside(folder, checked_name(file.path))
        try:
            status = path.stat()
            if status.st_size == file.size and (
                status.st_mtime_ns == file.modified_ns or self._digests.sha256(path) == file.digest
            ):
                return
        except OSError as error:
            raise _unreadable(path, error) from error
        raise SourceChanged(
            f"{path} has changed since the model was deployed",
            hint="deploy the model again",
            path=file.path,
        )


def _folder(uri: str) -> Path:
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if parts.netloc not in {"", "localhost"} or not path.is_absolute() or "\0" in str(path):
        raise SourceInvalid(f"{uri[:200]} is not file:///folder")
    try:
        folder = path.resolve(strict=True)
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceInvalid(f"cannot read {path}: {reason}") from error
    if is_folder:
        return folder
    hint = f"platform models import {path} FOLDER" if path.suffix == ".gguf" else None
    raise SourceInvalid(f"{path} is not a folder", hint=hint)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each regular file; broken links, pipes and devices are passed over."""
    sizes: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, MAX_LISTED):
                size = _regular_size(entry)
                if size is not None:
                    sizes[entry.name] = size
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sizes


def _regular_size(entry: "os.DirEntry[str]") -> int | None:
    try:
        status = entry.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _inside(folder: Path, name: str) -> Path:
    """Where the file really is; raises SourceInvalid if that is somewhere else."""
    try:
        real = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SourceInvalid(f"{folder / name} cannot be read: {error}", path=name) from error
    if not real.is_relative_to(_permitted_root(folder)):
        raise SourceInvalid(f"{folder / name} is a link to {real}, outside the folder", path=name)
    return real


def _permitted_root(folder: Path) -> Path:
    repository = folder.parent.parent
    in_hub_cache = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if in_hub_cache else folder


def _unreadable(path: Path, error: OSError) -> SourceInvalid:
    return SourceInvalid(f"cannot read {path}: {error.strerror or error}", path=path.name)
