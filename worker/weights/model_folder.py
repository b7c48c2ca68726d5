"""Makes a model's folder, whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import Conflict, SourceUnavailable


@contextmanager
def new_model_folder(target: Path, *, marker: str) -> Iterator[Path]:
    """A folder to fill, which becomes `target` in one rename when the block ends well.

    What stands at `target` is replaced if it is empty or holds a file called `marker`, which the
    caller writes too. Anything else there is left alone: Conflict. Raises SourceUnavailable when
    the disk refuses.
    """
    _check_replaceable(target, marker)
    with _disk_errors(target), _folder_beside(target) as folder:
        yield folder
        _put_in_place(folder, target)


def write_json(path: Path, content: object) -> None:
    """Writes and syncs a file that people may read."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _check_replaceable(target: Path, marker: str) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise Conflict(f"{target} exists and is no folder")
    if target.exists() and any(target.iterdir()) and not (target / marker).is_file():
        raise Conflict(
            f"{target} exists and was not made by this command",
            hint="choose another folder, or remove it first",
        )


@contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A new folder on the same file system, gone afterwards unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, target: Path) -> None:
    """Renames the finished folder to `target`; an earlier one steps aside first."""
    aside = folder.with_suffix(".old")
    if not target.exists():
        folder.rename(target)
        return
    target.rename(aside)
    try:
        folder.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceUnavailable(
            f"cannot write {error.filename or target}: {error.strerror or error}",
            hint="check permissions and free space",
        ) from error
