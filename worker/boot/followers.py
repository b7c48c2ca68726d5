"""The processes that compute a model together with this one: started, told what to do, watched."""

import asyncio
import os
import selectors
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from infra.contracts.base import Contract, GpuId
from infra.contracts.model_spec import EngineSettings
from infra.contracts.node import Failure
from infra.contracts.revision import ResolvedSource
from infra.errors import (
    DependencyMissing,
    Invalid,
    PlatformError,
    ReplicaFailed,
    SourceInvalid,
    UnsupportedModel,
)
from infra.sources.shared_files import SharedFiles
from worker.boot.ranks import Rank

_KINDS: dict[str, type[PlatformError]] = {
    kind.slug: kind for kind in (Invalid, SourceInvalid, UnsupportedModel, DependencyMissing)
}
LONGEST_REPLY = 1 << 16
_EXPLAIN_S = 1.0  # for a process whose connections broke to be gone
_MEETING = "meeting"
_STANDARD_OUTPUT = 1


class Part(Contract):
    """What a follower is told first: its rank and everything that the model is made of."""

    rank: int
    size: int
    folder: Path
    source: ResolvedSource
    shared: SharedFiles | None = None  # what of the folder is still on its way
    packed: Path
    engine: EngineSettings
    gpus: int
    gpu_ids: tuple[GpuId, ...] = ()
    threads: int
    meeting: Path
    wait_s: float


class Reply(Contract):
    """What a follower says: it goes to meet the others; its part is ready; it sleeps.

    Or, instead of the first two, why that will never be.
    """

    failure: Failure | None = None


class ProcessFollowers:
    """Ranks 1 and up, each a child that dies with this process (see Followers).

    `watch` belongs to an event loop; the others may block.
    """

    def __init__(self, processes: list["_Follower"], folder: "TemporaryDirectory[str]") -> None:
        self._processes = processes
        self._folder = folder

    @classmethod
    def start(cls, ranks: Sequence[Rank], part: Callable[[int, Path], Part]) -> Self:
        """Tells each rank its part; `part` makes it, given the rank and where all meet."""
        folder = TemporaryDirectory(prefix="firstlight-ranks-")
        meeting = Path(folder.name) / _MEETING
        followers = cls([_Follower(it, part(n, meeting)) for n, it in enumerate(ranks, 1)], folder)
        for process in followers._processes:
            process.begin()
        return followers

    @property
    def meeting(self) -> Path:
        """Where the ranks meet; see TorchGroup.join."""
        return Path(self._folder.name) / _MEETING

    def until_loading(self) -> None:
        """Returns when every rank is on its way to where all meet; raises why one is not."""
        for process in self._processes:
            process.until_reply()

    def until_ready(self) -> None:
        """Returns when every rank has its part of the model; raises why one has not."""
        for process in self._processes:
            process.until_reply()
        for process in self._processes:
            process.be_impatient()
        self._folder.cleanup()

    def until_asleep(self) -> None:
        """Returns when every rank has given its memory back, after it was told to rest."""
        for process in self._processes:
            process.until_reply()

    def tell(self, order: bytes) -> None:
        for process in self._processes:
            try:
                process.link.sendall(order)
            except OSError as error:
                lost = ReplicaFailed(f"{process.name} takes no orders")
                raise self.explain(lost) from error

    def explain(self, error: PlatformError) -> PlatformError:
        """Who was lost, where that is known; else the error itself."""
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                selector.register(process.pidfd, selectors.EVENT_READ, process)
            for key, _ in selector.select(_EXPLAIN_S):
                dead: _Follower = key.data
                return dead.end_of_life()
        return error

    def watch(self, on_death: Callable[[BaseException], None]) -> None:
        """Calls back on the running event loop when a rank ends, whatever else happens."""
        for process in self._processes:
            process.watch(on_death)

    def end(self) -> None:
        """Ends every process at once."""
        for process in self._processes:
            process.end()
        self._folder.cleanup()


class _Follower:
    """One process."""

    def __init__(self, rank: Rank, part: Part) -> None:
        self.name = f"rank {part.rank} of {part.size}"
        self.link = rank.link
        self.pidfd = os.pidfd_open(rank.pid)
        self._part = part
        self._received = b""

    def begin(self) -> None:
        """Tells it its part; what it prints goes where our own output goes."""
        line = self._part.model_dump_json().encode() + b"\n"
        try:
            sent = socket.send_fds(self.link, [line], [_STANDARD_OUTPUT])
            self.link.sendall(line[sent:])
        except OSError:
            return  # it is gone, as the wait for its reply finds

    def until_reply(self) -> None:
        """Reads one reply; raises the failure that it tells, or how the process ended."""
        while b"\n" not in self._received:
            try:
                received = self.link.recv(LONGEST_REPLY)
            except ConnectionError:  # it ended with orders unread
                received = b""
            if not received:
                raise self.end_of_life()
            self._received += received
        reply, _, self._received = self._received.partition(b"\n")
        failure = Reply.model_validate_json(reply).failure
        if failure is not None:
            raise _error(failure, self.name)

    def be_impatient(self) -> None:
        """From now on it takes orders at once, or something is wrong with it."""
        self.link.settimeout(self._part.wait_s)

    def watch(self, on_death: Callable[[BaseException], None]) -> None:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self.pidfd)
            on_death(self.end_of_life())

        loop.add_reader(self.pidfd, ended)

    def end(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        self.link.close()
        os.close(self.pidfd)

    def end_of_life(self) -> ReplicaFailed:
        """How a process ended that has, or is about to."""
        # Not reaped: the engine's thread and the event loop may both ask.
        end = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        assert end is not None, "it waits for the end"
        how = f"ended with status {end.si_status}"
        if end.si_code != os.CLD_EXITED:
            how = f"was ended by {signal.Signals(end.si_status).name}"
        return ReplicaFailed(f"{self.name} {how}")


def _error(failure: Failure, name: str) -> PlatformError:
    """What a rank failed of; wrong input stays wrong."""
    detail = f"{name}: {failure.detail}"
    return _KINDS.get(failure.code, ReplicaFailed)(detail)
