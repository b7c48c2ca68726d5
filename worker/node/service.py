"""Runs the node agent until it is told to stop."""

import asyncio
import signal
from collections.abc import Callable

import structlog
import uvloop

from infra.supervise import TaskSet
from infra.tether import adopt_orphans
from worker.boot.process import name_process
from worker.node import machine
from worker.node.agent import Agent
from worker.node.clock import NodeClock
from worker.node.cloud.rented import rented_machine
from worker.node.cloud.work import AgentWork
from worker.node.gpu_watch import GpuWatch
from worker.node.http_control_plane import HttpControlPlane
from worker.node.logs import ReplicaLogs
from worker.node.process_launcher import Programs
from worker.node.runtime import build_launcher
from worker.node.session import NodeFacts, Session
from worker.settings import NodeSettings

log = structlog.get_logger()


def run_node(
    settings: NodeSettings,
    *,
    program: tuple[str, ...],
    environment: dict[str, str],
    open_gpus: Callable[[], machine.GpuReader],
) -> None:
    """Serves this machine to the control plane; returns after SIGTERM or SIGINT.

    `program` is the command that understands `zygote` and `replica`; `open_gpus` may block.
    """
    name_process("fl-node")
    adopt_orphans()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, program, environment, open_gpus))


async def _serve(
    settings: NodeSettings,
    program: tuple[str, ...],
    environment: dict[str, str],
    open_gpus: Callable[[], machine.GpuReader],
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    rented = await rented_machine(settings) if settings.cloud == "ec2" else None
    if rented is not None:
        settings = rented.settings
    clock = NodeClock()
    logs = ReplicaLogs(settings.logs_dir, clock)
    logs.prune()
    programs = Programs(
        zygote=(*program, "zygote"),
        replica=(*program, "replica"),
        environment=environment,
        cache_dir=settings.cache_dir,
        weights_socket=settings.weights_socket,
        plain_http=settings.plain_http,
        zygote_log=settings.logs_dir / "zygote.log",
    )
    agent = Agent(build_launcher(settings, programs, clock), logs, clock)
    control_plane = HttpControlPlane(settings.control_plane_url, token=settings.key())
    facts = NodeFacts(
        node_id=settings.id,
        cpus=machine.cpus(),
        memory_bytes=machine.memory_bytes(),
        began_s=machine.process_began_s(),
        runtime=settings.runtime,
        host=settings.host,
        asked_at=None if rented is None else rented.asked_at,
    )
    gpus = GpuWatch(agent, open_gpus)
    await gpus.start()
    session = Session(control_plane, agent, logs, clock, facts)
    tasks = TaskSet()
    if rented is None:
        tasks.start(session.run(), name="node.session")
    else:
        tasks.start(rented.live(AgentWork(agent, session, tasks)), name="node.lifecycle")
    await stop.wait()
    await tasks.close()
    await agent.close()
    gpus.close()
    await session.say_goodbye()
    await control_plane.close()
    log.info("node.stopped", node=settings.id)
