"""SHA-256 of local files, remembered for as long as the files do not change."""

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from infra.errors import SourceInvalid

MAX_REMEMBERED: Final = 4096

_Identity = tuple[int, int, int, int]  # device, inode, bytes, modified (ns)


class FileDigests:
    """Reads each state of a file once."""

    def __init__(self) -> None:
        self._known: OrderedDict[_Identity, str] = OrderedDict()
        self._lock = threading.Lock()  # guards _known: sources are resolved in threads

    def sha256(self, path: Path) -> str:
        """`sha256:<hex>` of a file; raises SourceInvalid if it changes while it is read."""
        with path.open("rb") as file:
            before = _identity(file.fileno())
            with self._lock:
                known = self._known.get(before)
                if known is not None:
                    self._known.move_to_end(before)
                    return known
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            if _identity(file.fileno()) != before:
                raise SourceInvalid(f"{path} changes while it is read", path=path.name)
        with self._lock:
            self._known[before] = digest
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        return digest


def git_blob_sha1(path: Path) -> str:
    """`git-sha1:<hex>` of a file: the name git gives its content."""
    size = path.stat().st_size
    with path.open("rb") as file:
        state = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return f"git-sha1:{state.hexdigest()}"


def md5(path: Path) -> str:
    """Hex MD5 of a file."""
    with path.open("rb") as file:
        state = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return state.hexdigest()


def content_digest(lines: list[str]) -> str:
    """`sha256:<hex>` over lines that identify some content, whatever their order."""
    return f"sha256:{hashlib.sha256(chr(10).join(sorted(lines)).encode()).hexdigest()}"


def _identity(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
