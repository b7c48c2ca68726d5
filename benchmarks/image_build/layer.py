"""Writes files as one layer of an image: an uncompressed tar, the same for the same files."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from benchmarks.image_build.contents import File

MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"
USER = 65532  # as the Dockerfiles say it
_LONG_AGO = 1_700_000_000


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer in a file; uncompressed, its digest is its diff id."""

    path: Path
    digest: str
    size: int


def write_layer(
    target: Path,
    files: Iterable[File],
    *,
    folders: Mapping[str, int] | None = None,
    owned: Iterable[str] = (),
    links: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> WrittenLayer:
    """Everything belongs to root, who alone may write it; what can be run here can be run there.

    Folders that are `owned` are the user's own. `folders` have modes, `links` targets. What
    compiled Python is valid for is a file's time.
    """
    known: set[str] = set()
    with (
        target.open("wb") as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, mode in (folders or {}).items():
            _parents(tar, name, known)
            _add_folder(tar, name, mode, known)
        for name in owned:
            member = _member(name, tarfile.DIRTYPE, 0o755)
            member.uid = member.gid = USER
            tar.addfile(member)
        for name, to in (links or {}).items():
            _parents(tar, name, known)
            link = _member(name, tarfile.SYMTYPE, 0o777)
            link.linkname = to
            tar.addfile(link)
        for name, text in (texts or {}).items():
            _parents(tar, name, known)
            member = _member(name, tarfile.REGTYPE, 0o644)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        for file in sorted(files, key=lambda file: file.path):
            _parents(tar, file.path, known)
            status = file.source.stat()
            member = _member(file.path, tarfile.REGTYPE, 0o755 if status.st_mode & 0o100 else 0o644)
            member.size, member.mtime = status.st_size, int(status.st_mtime)
            with file.source.open("rb") as content:
                tar.addfile(member, content)
    with target.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return WrittenLayer(target, f"sha256:{digest}", target.stat().st_size)


def _parents(tar: tarfile.TarFile, name: str, known: set[str]) -> None:
    for parent in reversed(PurePosixPath(name).parents[:-1]):
        _add_folder(tar, str(parent), 0o755, known)


def _add_folder(tar: tarfile.TarFile, name: str, mode: int, known: set[str]) -> None:
    if name not in known:
        known.add(name)
        tar.addfile(_member(name, tarfile.DIRTYPE, mode))


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, _LONG_AGO
    return member
