"""This computer as a node: one agent process, tethered to us and started again when it dies."""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from control_plane.capacity.port import (
    CapacityListener,
    Ended,
    LaunchToken,
    Machine,
    MachineKind,
    Need,
)
from infra.backoff import Backoff
from infra.clock import Clock
from infra.contracts.base import NodeId
from infra.errors import NoCapacity
from infra.supervise import TaskSet
from infra.tether import tethered

log = structlog.get_logger()

_FOR_PULLS = "PLATFORM_SNAPSHOTTER_"  # settings of the program that pulls the workers' image
LOCAL = NodeId("local")


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """How to start the agent: where it dials, what it may say, where it writes.

    `environment` is what it inherits; settings of ours are added to it.
    """

    control_plane_url: str
    token: str
    state_dir: Path
    environment: Mapping[str, str]
    log_level: str = "info"
    log_format: str = "console"
    runtime: Mapping[str, str] = field(default_factory=dict)  # settings of what workers run as
    command: tuple[str, ...] = (sys.executable, "-m", "worker.main", "node")

    def variables(self, node_id: NodeId) -> dict[str, str]:
        """The agent's whole environment (see worker.settings.NodeSettings)."""
        inherited = {
            name: value
            for name, value in self.environment.items()
            if not name.startswith("PLATFORM_") or name.startswith(_FOR_PULLS)
        }
        return inherited | {
            "PLATFORM_NODE_CONTROL_PLANE_URL": self.control_plane_url,
            "PLATFORM_NODE_TOKEN": self.token,
            "PLATFORM_NODE_ID": node_id,
            "PLATFORM_NODE_STATE_DIR": str(self.state_dir),
            "PLATFORM_NODE_HOST": "127.0.0.1",  # whatever address of ours the agent dials
            "PLATFORM_NODE_LOG_LEVEL": self.log_level,
            "PLATFORM_NODE_LOG_FORMAT": self.log_format,
            **self.runtime,
        }


class LocalCapacity:
    """The one machine there is: while this is open, its agent runs or is started again."""

    def __init__(
        self,
        agent: LocalAgent,
        *,
        clock: Clock,
        backoff: Backoff = Backoff(first_s=0.02, most_s=10.0),  # noqa: B008 - frozen value
        healthy_s: float = 10.0,
        stop_s: float = 5.0,
        boot_s: float = 30.0,
    ) -> None:
        self._agent = agent
        self._clock = clock
        self._backoff = backoff
        self._healthy_s = healthy_s
        self._stop_s = stop_s
        self._boot_s = boot_s
        self._last_end: str | None = None
        self._tasks = TaskSet()
        self._keeper: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._launched_at = 0.0
        self._listeners: list[CapacityListener] = []

    async def open(self) -> None:
        """Starts the agent, once, and keeps it running."""
        if self._keeper is None:
            self._launched_at = self._clock.now()
            self._keeper = self._tasks.start(self._keep(), name="local agent")

    async def close(self) -> None:
        """Ends the agent with us."""
        await self.terminate(LOCAL)
        await self._tasks.close()

    async def launch(self, need: Need, *, token: LaunchToken) -> NodeId:
        """There is no other machine: raises NoCapacity."""
        why = "" if self._last_end is None else f", and last {self._last_end}"
        raise NoCapacity(f"this platform runs on one machine{why}", tried=[LOCAL])

    async def start(self, need: Need, *, token: LaunchToken) -> NodeId | None:
        return None

    async def stop(self, node_id: NodeId) -> None:
        await self.terminate(node_id)

    async def terminate(self, node_id: NodeId) -> None:
        """Stops the agent and everything below it, and keeps it stopped."""
        if node_id != LOCAL or self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    async def hold(self, kind: MachineKind, stopped: int) -> None:
        return

    def describe(self) -> tuple[Machine, ...]:
        """This machine, from its launch to its termination, also between two agents."""
        if self._keeper is None:
            return ()
        return (Machine(LOCAL, self._launched_at, is_elastic=False, boot_s=self._boot_s),)

    def subscribe(self, listener: CapacityListener) -> None:
        self._listeners.append(listener)

    @property
    def pid(self) -> int | None:
        """The agent's process id while it runs."""
        return None if self._process is None else self._process.pid

    async def _keep(self) -> None:
        """Runs one agent after the other until cancelled."""
        failures = 0
        while True:
            began_at = self._clock.now()
            reason = await self._run_agent()
            served_s = self._clock.now() - began_at
            failures = 1 if served_s >= self._healthy_s else failures + 1
            self._last_end = reason
            wait_s = self._backoff.delay_s(failures)
            log.warning("agent.ended", reason=reason, seconds=served_s, retry_s=wait_s)
            for listener in self._listeners:
                listener(Ended(LOCAL, reason))
            await asyncio.sleep(wait_s)

    async def _run_agent(self) -> str:
        """Runs one agent to its end; says how it ended. Cancelled, it ends the agent first."""
        self._agent.state_dir.mkdir(parents=True, exist_ok=True)
        try:
            process = await asyncio.create_subprocess_exec(
                *tethered(*self._agent.command),
                env=self._agent.variables(LOCAL),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in our terminal is ours to handle
            )
        except OSError as error:
            return f"the agent could not be started: {error}"
        self._process = process
        log.info("agent.started", pid=process.pid)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await self._stop(process)
            raise
        finally:
            self._process = None
        return f"the agent was killed by signal {-code}" if code < 0 else f"the agent exited {code}"

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_s)
        except TimeoutError:
            log.warning("agent.killed", pid=process.pid, after_s=self._stop_s)
            process.kill()
            await process.wait()
