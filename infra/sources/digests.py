"""SHA-256 of local files, remembered for as long as the files do not change."""

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from infra.contracts.revision import SourceFile
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


class WholeDigest:
    """The digest that a source publishes of a whole file, computed as its bytes come in order."""

    def __init__(self, file: SourceFile) -> None:
        kind, _, self._expected = (file.digest or "").partition(":")
        match kind:
            case "sha256":
                self._state = hashlib.sha256()
            case "git-sha1":
                self._state = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
            case "md5":
                self._state = hashlib.md5(usedforsecurity=False)
            case _:  # an ETag that is no digest
                self._expected = ""

    @property
    def is_known(self) -> bool:
        """Whether the source publishes one that can be computed."""
        return self._expected != ""

    def update(self, data: memoryview) -> None:
        self._state.update(data)

    @property
    def is_right(self) -> bool:
        return self._state.hexdigest() == self._expected


def matches(path: Path, file: SourceFile) -> bool:
    """Whether the file has the size and, where it can be computed, the digest it should have."""
    if path.stat().st_size != file.size:
        return False
    digest = WholeDigest(file)
    if not digest.is_known:  # checked by the store's adapter as it downloads
        return True
    with path.open("rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(memoryview(chunk))
    return digest.is_right


def content_digest(lines: list[str]) -> str:
    """`sha256:<hex>` over lines that identify some content, whatever their order."""
    return f"sha256:{hashlib.sha256(chr(10).join(sorted(lines)).encode()).hexdigest()}"


def _identity(descriptor: int) -> _Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
