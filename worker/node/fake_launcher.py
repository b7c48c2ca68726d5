"""A launcher without processes, for tests: workers that do as they are told."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.contracts.stage import Rung
from infra.contracts.worker_link import FromWorker, Hello, ToWorker
from worker.node.launcher import Exit, Listener
from worker.node.plan import Origin, WorkerId


@dataclass
class FakeLauncher:
    """Zygotes come up and workers park after the given seconds of the loop's time."""

    zygote_s: float = 1.0
    fork_s: float = 0.02
    spawn_s: float = 1.2
    has_zygote: bool = False
    is_up: bool = False
    zygotes: int = 0
    alive: dict[WorkerId, Origin] = field(default_factory=dict)
    ranks: dict[WorkerId, int] = field(default_factory=dict)
    images: dict[WorkerId, str | None] = field(default_factory=dict)
    runs_images: bool = False
    pins: dict[str, str] = field(default_factory=dict)
    parked: set[WorkerId] = field(default_factory=set)
    sent: list[tuple[WorkerId, ToWorker]] = field(default_factory=list)
    killed: list[WorkerId] = field(default_factory=list)
    is_closed: bool = False
    _forks: list[WorkerId] = field(default_factory=list)
    _listener: Listener | None = None

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def pin(self, indexes: Mapping[str, str]) -> None:
        self.pins = dict(indexes)

    def climbs_from(self, origin: Origin, *, image: str | None = None) -> tuple[Rung, str]:
        return Rung.NODE, origin.value

    def start_zygote(self) -> None:
        self.has_zygote, self.zygotes = True, self.zygotes + 1
        asyncio.get_running_loop().call_later(self.zygote_s, self._zygote_up, self.zygotes)

    def stop_zygote(self) -> None:
        self.has_zygote = self.is_up = False
        self._lose_forks("the fork server was stopped")

    def fork(self, worker_id: WorkerId, *, ranks: int, image: str | None = None) -> None:
        assert self.has_zygote
        self.images[worker_id] = image
        self.alive[worker_id] = Origin.FORK
        self.ranks[worker_id] = ranks
        self._forks.append(worker_id)
        if self.is_up:
            self._work_off_forks()

    def spawn(
        self, worker_id: WorkerId, log_path: Path, *, ranks: int, image: str | None = None
    ) -> None:
        self.images[worker_id] = image
        self.alive[worker_id] = Origin.SPAWN
        self.ranks[worker_id] = ranks
        asyncio.get_running_loop().call_later(self.spawn_s, self._park, worker_id)

    def send(self, worker_id: WorkerId, message: ToWorker) -> None:
        if worker_id in self.alive:
            self.sent.append((worker_id, message))

    def kill(self, worker_id: WorkerId) -> None:
        self.killed.append(worker_id)
        self.lose(worker_id, Exit(-9))

    async def close(self) -> None:
        self.is_closed = True
        for worker_id in tuple(self.alive):
            self.kill(worker_id)
        self.stop_zygote()
        await asyncio.sleep(0)  # in which their ends are told

    # What a test makes happen --------------------------------------------------------------

    def say(self, worker_id: WorkerId, message: FromWorker) -> None:
        """The worker says something."""
        assert self._listener is not None
        self._listener.on_message(worker_id, message)

    def lose(self, worker_id: WorkerId, end: Exit) -> None:
        """The worker's process ends."""
        if self.alive.pop(worker_id, None) is not None:
            self.parked.discard(worker_id)
            assert self._listener is not None
            asyncio.get_running_loop().call_soon(self._listener.on_exit, worker_id, end)

    def lose_zygote(self, end: Exit) -> None:
        """The zygote's process ends, and with it the workers it had yet to fork."""
        assert self._listener is not None
        self.has_zygote = self.is_up = False
        asyncio.get_running_loop().call_soon(self._listener.on_zygote_exit, end)
        self._lose_forks("the fork server died")

    def _lose_forks(self, why: str) -> None:
        for worker_id in self._forks:
            self.lose(worker_id, Exit(why=why))
        self._forks.clear()

    def _zygote_up(self, number: int) -> None:
        if self.has_zygote and number == self.zygotes:
            self.is_up = True
            assert self._listener is not None
            self._listener.on_zygote_up()
            self._work_off_forks()

    def _work_off_forks(self) -> None:
        loop = asyncio.get_running_loop()
        for worker_id in self._forks:
            loop.call_later(self.fork_s, self._park, worker_id)
        self._forks.clear()

    def _park(self, worker_id: WorkerId) -> None:
        if worker_id in self.alive:
            self.parked.add(worker_id)
            is_fork = self.alive[worker_id] is Origin.FORK
            self.say(worker_id, Hello(pid=worker_id, origin="fork" if is_fork else "spawn"))
