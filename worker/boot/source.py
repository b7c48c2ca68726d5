"""Where a replica's model files are: in place, or fetched; and whether they are still the same."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import SourceInvalid

HASHED_BYTES = 16 << 20  # identity of smaller files is checked: config, tokenizer, chat template

Fetch = Callable[[ResolvedSource, Path, Callable[[float], None]], Path]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A folder with the model; `origin` names how its bytes get here."""

    folder: Path
    origin: str


def locate(
    source: ResolvedSource,
    *,
    cache_dir: Path,
    fetch: Fetch,
    on_progress: Callable[[float], None],
) -> ModelFiles:
    """The folder that holds the source's files: its own where it is one, else fetched.

    Raises SourceInvalid for a folder that has changed since it was deployed, and what `fetch`
    raises.
    """
    parts = urlsplit(source.uri)
    if parts.scheme != "file":
        origin = {"hf": "hub"}.get(parts.scheme, parts.scheme)
        return ModelFiles(fetch(source, cache_dir, on_progress), origin)
    folder = Path(unquote(parts.path))
    for file in source.files:
        _check(folder, file)
    return ModelFiles(folder, "mmap")


def _check(folder: Path, file: SourceFile) -> None:
    path = folder / _inside(file.path)
    try:
        size = path.stat().st_size
        is_same = size == file.size and (
            file.digest is None or size > HASHED_BYTES or file.digest == _digest(path)
        )
    except OSError as error:
        raise SourceInvalid(f"{path} cannot be read: {error.strerror}", path=file.path) from error
    if not is_same:
        raise SourceInvalid(
            f"{path} has changed since the model was deployed",
            hint="deploy the model again",
            path=file.path,
        )


def _inside(path: str) -> PurePosixPath:
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise SourceInvalid(f"the source lists a file outside its folder: {path!r}", path=path)
    return relative


def _digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
