"""Memory for weights that are on their way, made while the worker is parked if it can be."""

import threading
from pathlib import Path
from typing import Final

from infra.sources.landing import Landing

_SHARE: Final = 0.8  # of the memory that is free may be taken; a file in the cache needs less
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")  # where a container finds its own limit


class Landings:
    """Keeps one landing ready. Until it is used the kernel may take its pages back."""

    def __init__(self) -> None:
        self._ready: Landing | None = None
        self._lock = threading.Lock()  # guards _ready: a climb takes it while it is being made

    def prepare(self, size: int) -> None:
        """Makes room for so many bytes, if none as large is ready; takes as long as it takes.

        What was made for more goes where there is nothing to make room for.
        """
        with self._lock:
            if self._ready is not None and len(self._ready) >= size > 0:
                return
            self._drop()
            landing = self._ready = _landing(size) if size else None
        if landing is not None:
            landing.touch()
        with self._lock:
            if landing is not None and self._ready is landing:  # else bytes may be there already
                landing.rest()

    def spare(self) -> Landing | None:
        """What is ready, for files whose pages take its place."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None:
            ready.drop()  # it may still be touched
        return ready

    def take(self, size: int) -> Landing | None:
        """Room for so many bytes; None where memory is too short for it."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None and len(ready) >= size:
            return ready
        return _landing(size)

    def _drop(self) -> None:
        if self._ready is not None:
            self._ready.drop()
            self._ready = None


def _landing(size: int) -> Landing | None:
    if size > _SHARE * available_bytes():
        return None
    try:
        return Landing(size)
    except OSError:
        return None


def available_bytes() -> int:
    """What can be had without swapping and without the end of somebody; 0 where nobody says."""
    try:
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 0
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # the root, or no limit: "max"
        return available
    return max(0, min(available, limit - used))
