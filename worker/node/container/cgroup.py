"""One container's control groups, of either version: limits that change, and who was killed."""

from pathlib import Path

from worker.node.container.spec import Limits

ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


class Cgroup:
    """`path` is the container's, as its specification says it: `/firstlight/name`."""

    def __init__(self, path: str, *, root: Path = ROOT) -> None:
        self._is_unified = (root / "cgroup.controllers").exists()
        self._root = root
        self._path = path.lstrip("/")

    def limit(self, limits: Limits) -> None:
        """From now on; a limit that is not set stays as it was.

        Raises OSError: EBUSY where more memory is in use than there may be.
        """
        if limits.memory_bytes is not None:
            name = "memory.max" if self._is_unified else "memory.limit_in_bytes"
            self._file("memory", name).write_text(str(limits.memory_bytes))
        if limits.cpus is not None:
            quota_us = int(limits.cpus * _PERIOD_US)
            if self._is_unified:
                self._file("cpu", "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
            else:
                self._file("cpu", "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                self._file("cpu", "cpu.cfs_quota_us").write_text(str(quota_us))

    def out_of_memory_kills(self) -> int:
        """Processes that the kernel killed because the group was at its limit; 0: none, or gone."""
        name = "memory.events" if self._is_unified else "memory.oom_control"
        try:
            lines = self._file("memory", name).read_text().splitlines()
        except OSError:
            return 0
        counts = dict(line.rpartition(" ")[::2] for line in lines)
        return int(counts.get("oom_kill", "0"))

    def _file(self, controller: str, name: str) -> Path:
        if self._is_unified:
            return self._root / self._path / name
        return self._root / controller / self._path / name
