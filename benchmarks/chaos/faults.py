"""Does to a running platform what the plan says, and undoes it."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.chaos.plan import Fault, Kind
from benchmarks.chaos.records import Absence
from tests.support.platform import RunningPlatform

DISK_BYTES = 96 << 20
_NOBODY = ("127.0.0.1", "1")  # no master answers there
_CHUNK = bytes(1 << 20)


class Saboteur:
    """One at a time; what it could not do, because there was no such process, it says."""

    def __init__(
        self, platform: RunningPlatform, *, disk: Path | None, gone: Callable[[Absence], None]
    ) -> None:
        self._platform = platform
        self._disk = disk
        self._gone = gone

    def do(self, fault: Fault) -> str:
        """Does it, waits as long as it holds, undoes it; returns what came of it."""
        if fault.kind is Kind.DISK_FULL:
            return self._fill_disk(fault.holds_s)
        if fault.kind in {Kind.OUT_OF_MEMORY, Kind.READ_ONLY, Kind.NO_SNAPSHOTS}:
            return self._refuse(fault)
        if fault.victim == "platform" and fault.kind is not Kind.STALL:
            return self._restart(fault)
        return self._signal(fault)

    def _restart(self, fault: Fault) -> str:
        is_sudden = fault.kind is not Kind.TERM
        began_at = time.monotonic()
        try:
            if fault.kind is Kind.KILL_TWICE:
                self._platform.stop(signal.SIGKILL)
                self._platform.launch()
                time.sleep(fault.holds_s)  # noqa: TID251 - real processes
            self._platform.restart(signal.SIGKILL if is_sudden else signal.SIGTERM)
        finally:
            ended_at = time.monotonic()
            self._gone(Absence(began_at, ended_at, is_sudden=is_sudden))
        return f"back after {ended_at - began_at:.1f} s"

    def _signal(self, fault: Fault) -> str:
        victims = self._victims(fault.victim)
        if not victims:
            return "there is none"
        victim = victims[0]
        with suppress(psutil.NoSuchProcess):
            match fault.kind:
                case Kind.KILL:
                    victim.kill()
                case Kind.TERM:
                    victim.terminate()
                case _:
                    self._stall(victim, fault.holds_s)
        return f"pid {victim.pid}"

    def _victims(self, kind: str) -> list[psutil.Process]:
        if kind == "platform":
            return [psutil.Process(self._platform.process.pid)]
        return self._platform.named(kind)

    def _stall(self, victim: psutil.Process, seconds: float) -> None:
        victim.suspend()
        try:
            time.sleep(seconds)  # noqa: TID251 - real processes
        finally:
            victim.resume()

    # -- the store -----------------------------------------------------------------------------

    def _refuse(self, fault: Fault) -> str:
        """Redis takes no writes for a while."""
        folder = self._platform.state_dir / "redis"
        with closing(Redis(unix_socket_path=str(folder / "redis.sock"), socket_timeout=5)) as redis:
            try:
                match fault.kind:
                    case Kind.OUT_OF_MEMORY:
                        redis.config_set("maxmemory", "1")
                    case Kind.READ_ONLY:
                        redis.execute_command("REPLICAOF", *_NOBODY)
                    case _:
                        (folder / "dump.rdb").mkdir(exist_ok=True)
                        redis.config_set("save", "1 1")
                time.sleep(fault.holds_s)  # noqa: TID251 - real processes
                redis.config_set("maxmemory", "0")
                redis.config_set("save", "")
                redis.execute_command("REPLICAOF", "NO", "ONE")
            except (RedisError, OSError) as error:  # it ended: the next one begins anew
                return f"not possible: {error}"
            finally:
                with suppress(OSError):
                    (folder / "dump.rdb").rmdir()
        return "over"

    def _fill_disk(self, seconds: float) -> str:
        if self._disk is None:
            return "SKIPPED: no file system could be mounted"
        filler = self._disk / "filler"
        try:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(_CHUNK)
            time.sleep(seconds)  # noqa: TID251 - real processes
        finally:
            filler.unlink(missing_ok=True)
        return "over"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of its own in the folder, so that it can be full; None where not allowed."""
    folder.mkdir()
    if not shutil.which("mount"):
        yield None
        return
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
