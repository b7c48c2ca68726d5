"""The folder of each snapshot: what is written into it, or where its layer is mounted."""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from snapshotter.containerd.snapshot import Kind, Usage

_NEW = "new-"
_DISK_BLOCK = 512  # of st_blocks, whatever the file system's own are (stat(2))


class Folders:
    """`<root>/<id>/fs` has a snapshot's files, `<root>/<id>/work` is overlayfs' own."""

    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root

    def files(self, snapshot_id: int) -> Path:
        """Where its files are; of a layer that is mounted elsewhere, a link to it."""
        return self._root / str(snapshot_id) / "fs"

    def work(self, snapshot_id: int) -> Path:
        return self._root / str(snapshot_id) / "work"

    def make(self, kind: Kind, *, parent: int | None) -> Path:
        """A folder that is nobody's yet; its root looks like its parent's."""
        made = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._root))
        files = made / "fs"
        files.mkdir(mode=0o755)
        if kind is Kind.ACTIVE:
            (made / "work").mkdir(mode=0o711)
        if parent is not None:
            look = self.files(parent).stat()
            os.chown(files, look.st_uid, look.st_gid)
            files.chmod(look.st_mode & 0o7777)
        return made

    def give(self, made: Path, snapshot_id: int) -> None:
        """It is that snapshot's now, whatever lay there."""
        self.remove(snapshot_id)
        made.rename(self._root / str(snapshot_id))

    def link(self, snapshot_id: int, target: Path) -> None:
        """A snapshot whose files are mounted at `target`, whatever lay there."""
        files = self.files(snapshot_id)
        if files.is_symlink() and files.readlink() == target:
            return
        self.remove(snapshot_id)
        files.parent.mkdir(mode=0o700)
        files.symlink_to(target)

    def remove(self, snapshot_id: int) -> None:
        self.discard(self._root / str(snapshot_id))

    def discard(self, folder: Path) -> None:
        """A link in it is removed, not what it leads to."""
        shutil.rmtree(folder, ignore_errors=True)

    def strangers(self, known: Collection[int]) -> list[Path]:
        """Folders of no snapshot, and those that are being made."""
        names = {str(snapshot_id) for snapshot_id in known}
        return sorted(path for path in self._root.iterdir() if path.name not in names)

    def is_being_made(self, folder: Path) -> bool:
        return folder.name.startswith(_NEW)

    def usage(self, snapshot_id: int) -> Usage:
        """What its files take; reads all of them."""
        seen: set[tuple[int, int]] = set()
        size_bytes = 0
        for status in _statuses(self.files(snapshot_id)):
            if (inode := (status.st_dev, status.st_ino)) not in seen:
                seen.add(inode)
                size_bytes += status.st_blocks * _DISK_BLOCK
        return Usage(size_bytes, len(seen))


def _statuses(root: Path) -> Iterator[os.stat_result]:
    yield root.lstat()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            try:
                yield os.lstat(os.path.join(folder, name))  # noqa: PTH118 - many files
            except FileNotFoundError:
                continue  # a container deleted it meanwhile
