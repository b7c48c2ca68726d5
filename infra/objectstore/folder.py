"""Values as files of one folder."""

import asyncio
import heapq
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import StoreUnavailable
from infra.objectstore.port import checked

_FRESH = ".new-"
_WRITES = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class FolderObjects:
    """The ObjectStore of one machine; a value is on disk under its name, or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, key: str, data: bytes) -> None:
        await asyncio.to_thread(self._put, self._path(key), data)

    async def get(self, key: str) -> bytes | None:
        return await asyncio.to_thread(self._get, self._path(key))

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._delete, self._path(key))

    async def keys(self, folder: str, *, after: str, count: int) -> tuple[str, ...]:
        return await asyncio.to_thread(self._keys, folder, after, count)

    def _path(self, key: str) -> Path:
        return self._folder / checked(key)

    def _put(self, path: Path, data: bytes) -> None:
        with _store_errors():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = _fresh(path)
            try:
                with os.fdopen(os.open(fresh, _WRITES, 0o600), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)

    def _get(self, path: Path) -> bytes | None:
        with _store_errors():
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def _delete(self, path: Path) -> None:
        with _store_errors():
            path.unlink(missing_ok=True)
            _fresh(path).unlink(missing_ok=True)

    def _keys(self, folder: str, after: str, count: int) -> tuple[str, ...]:
        with _store_errors():
            try:
                with os.scandir(self._path(folder)) as found:
                    names = {it.name.removeprefix(_FRESH) for it in found}
            except FileNotFoundError:
                return ()
        keys = (f"{folder}/{name}" for name in names)
        return tuple(heapq.nsmallest(count, (key for key in keys if key > after)))


def _fresh(path: Path) -> Path:
    """What is not whole yet: beside the value, so that one rename makes it one."""
    return path.with_name(f"{_FRESH}{path.name}")


def _sync_folder(folder: Path) -> None:
    """The new name is on disk as well."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            f"the folder of results cannot be used: {error.strerror or error}", retry_after_s=5
        ) from error
