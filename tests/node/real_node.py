"""A real agent as a process of its own, and a control plane over HTTP in the test's loop."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.node import NodeRegistration, NodeReport, ReplicaReport
from infra.contracts.revision import ReplicaState
from infra.tether import tethered
from tests.support.processes import alive, called, descendants
from worker.node.control_plane import UnknownNode
from worker.node.fake_control_plane import FakeControlPlane

TOKEN = "token-of-the-nodes-in-tests"
SCRIPTED = (sys.executable, "-m", "tests.node.scripted_program", "node")
REAL = (sys.executable, "-m", "worker.main", "node")


class HttpFakeControlPlane:
    """The fake control plane's three calls as routes, on a port that survives a restart."""

    def __init__(self, fake: FakeControlPlane) -> None:
        self.fake = fake
        self.port = 0

    async def start(self) -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        app = Starlette(
            routes=[
                Route("/internal/nodes", self._register, methods=["POST"]),
                Route("/internal/nodes/{node}/desired", self._desired),
                Route("/internal/nodes/{node}/reports", self._report, methods=["POST"]),
            ]
        )
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=0)
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        """As if it were killed: connections are cut."""
        self._server.should_exit = self._server.force_exit = True
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        await self._serving

    async def _register(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        registration = NodeRegistration.model_validate_json(await request.body())
        return _json(await self.fake.register(registration))

    async def _desired(self, request: Request) -> Response:
        node = NodeId(request.path_params["node"])
        after, wait_s = request.query_params["after"], request.query_params["wait_s"]
        try:
            return _json(await self.fake.desired(node, after=int(after), wait_s=float(wait_s)))
        except UnknownNode:
            return Response(status_code=404)

    async def _report(self, request: Request) -> Response:
        report = NodeReport.model_validate_json(await request.body())
        try:
            return _json(await self.fake.report(report))
        except UnknownNode:
            return Response(status_code=404)


class _Server(uvicorn.Server):
    """Signals are for the process around it, not for it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _json(contract: object) -> Response:
    return Response(contract.model_dump_json(), media_type="application/json")  # type: ignore[attr-defined]


class RealNode:
    """One agent process and everything below it."""

    def __init__(self, control_plane: HttpFakeControlPlane, state_dir: Path) -> None:
        self.control_plane = control_plane
        self.state_dir = state_dir
        self.seen: list[psutil.Process] = []

    @property
    def fake(self) -> FakeControlPlane:
        return self.control_plane.fake

    def start(self, command: tuple[str, ...], environment: dict[str, str]) -> None:
        with (self.state_dir / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env=environment
                | {
                    "PLATFORM_NODE_CONTROL_PLANE_URL": f"http://127.0.0.1:{self.control_plane.port}",
                    "PLATFORM_NODE_TOKEN": TOKEN,
                    "PLATFORM_NODE_ID": "n1",
                    "PLATFORM_NODE_STATE_DIR": str(self.state_dir),
                    "PLATFORM_NODE_LOG_LEVEL": "debug",
                },
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for who started it, and ends it in order
            )

    def log(self) -> str:
        return (self.state_dir / "agent.log").read_text()

    def named(self, name: str) -> list[psutil.Process]:
        """Processes of that name under the agent now, itself included."""
        found = descendants(self.process.pid)
        self.seen += [process for process in found if process not in self.seen]
        return called(found, name)

    def report(self, replica: str = "r1") -> ReplicaReport | None:
        return self.fake.replicas.get(ReplicaId(replica))

    async def until(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Waits for real processes, while the control plane goes on."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, (
                f"after {seconds} s still not: {what}\n{self.log()[-4000:]}"
            )
            await asyncio.sleep(0.005)

    async def until_parked(self, count: int = 1) -> None:
        await self.until(
            lambda: self.fake.reports and self.fake.reports[-1].standby_ready == count,
            f"{count} parked",
        )

    async def until_state(self, state: ReplicaState, replica: str = "r1") -> ReplicaReport:
        def has_it() -> bool:
            report = self.report(replica)
            return report is not None and report.state is state

        await self.until(has_it, f"{replica} is {state}")
        report = self.report(replica)
        assert report is not None
        return report

    async def until_nothing_is_left(self, seconds: float = 60) -> None:
        await self.until(lambda: not alive(self.seen), "no process is left", seconds)


@contextlib.asynccontextmanager
async def real_node(
    environment: dict[str, str], command: tuple[str, ...] = SCRIPTED, *, is_tethered: bool = False
) -> AsyncIterator[RealNode]:
    """A registered node; at the end it is stopped, and nothing of it may be left."""
    control_plane = HttpFakeControlPlane(FakeControlPlane(lease_s=3))
    await control_plane.start()
    with tempfile.TemporaryDirectory(prefix="firstlight-node-") as folder:
        node = RealNode(control_plane, Path(folder))
        node.start(tethered(*command) if is_tethered else command, environment)
        try:
            await node.until(lambda: node.fake.registrations, "the node registers")
            yield node
            node.named("")
        finally:
            node.named("")
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
            await node.until(lambda: node.process.poll() is not None, "the agent ends")
            await node.until_nothing_is_left()
            await control_plane.stop()


def kill(processes: list[psutil.Process]) -> bool:
    """SIGKILL to at least one."""
    assert processes
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return True
