"""The folder of one container on this machine: its sockets, its output, its replica's log."""

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from worker.node.container.spec import USER

_LINK = "link.sock"
_HTTP = "http.sock"
_BACKLOG = 4096


class Place:
    """Two listening sockets: one that the worker finds and says hello on, one that it is given.

    The container sees `inside` and nothing else of the folder, and can make no file there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, mode=0o700)
        self.folder = folder
        self.inside = folder / "inside"
        self.inside.mkdir(mode=0o755)
        self.output = folder / "output.log"
        # A socket's path has 107 bytes at most; that of an open folder is short.
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.link = self._listening(f"{self.inside.name}/{_LINK}")
        (self.inside / _LINK).chmod(0o666)
        self.http = self._listening(_HTTP)

    @property
    def http_path(self) -> str:
        """Where the worker's HTTP surface is reached from this process."""
        return f"/proc/self/fd/{self._descriptor}/{_HTTP}"

    def put_log(self, path: Path) -> str:
        """Lets the container write a log of this machine, and no other; its name in there."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.fchown(descriptor, USER, USER)
        finally:
            os.close(descriptor)
        os.link(path, self.inside / path.name)
        return path.name

    def take_logs_away(self) -> None:
        """Whoever has one open may still write it."""
        for log in self.inside.glob("*.log"):
            log.unlink(missing_ok=True)

    def close(self) -> None:
        """The folder is gone, and with it the way to the container."""
        for listening in (self.link, self.http):
            listening.close()
        with suppress(OSError):
            os.close(self._descriptor)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _listening(self, name: str) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(f"/proc/self/fd/{self._descriptor}/{name}")
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        return listening


def remove_places(folder: Path, *, but: str) -> None:
    """What agents before this one left; not what begins with the prefix of this one's names."""
    with suppress(FileNotFoundError):
        for left in folder.iterdir():
            if not left.name.startswith(but):
                shutil.rmtree(left, ignore_errors=True)
