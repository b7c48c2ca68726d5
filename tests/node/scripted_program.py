"""The worker's programs with a scripted climb in place of a model, for tests of the processes.

The source's folder holds `script.json`: seconds a stage takes, what it prints, how it fails.
"""

import argparse
import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from infra import errors
from infra.clock import Clock
from infra.contracts.base import GpuId
from infra.contracts.node import ReplicaAssignment
from infra.contracts.revision import ResolvedSource
from infra.contracts.stage import Stage
from infra.logs import configure
from worker.boot.entrance import enter
from worker.boot.ports import Climbed, Server
from worker.boot.process import begin, leave
from worker.boot.ranks import fork_ranks
from worker.boot.replica import run_replica
from worker.boot.stages import StageTimer
from worker.boot.zygote import run_zygote
from worker.node.nvml import gpus_ahead
from worker.node.service import run_node
from worker.settings import NodeSettings, child_environment, visible_gpus

# A further process that does not end with its replica.
RANK = """
import time
from worker.boot.process import name_process
name_process("fl-rank")
time.sleep(600)
"""


@dataclass
class ScriptedEngine:
    on_failure: Callable[[BaseException], None] | None = None
    script: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        if after_s := self.script.get("engine_dies_after_s"):
            asyncio.get_running_loop().call_later(after_s, self._die)

    async def close(self) -> None:
        """Nothing to close."""

    def _die(self) -> None:
        assert self.on_failure is not None
        self.on_failure(RuntimeError("the engine came to a bad end"))


class ScriptedClimb:
    """Sleeps, prints and fails as the source's script says."""

    def __init__(self) -> None:
        self.prepared: list[str] = []

    def prepare(self, source: ResolvedSource) -> None:
        self.prepared.append(source.digest)

    def __call__(
        self, assignment: ReplicaAssignment, stages: StageTimer, gpus: tuple[GpuId, ...]
    ) -> Climbed:
        folder = Path(assignment.source.uri.removeprefix("file://"))
        script = json.loads((folder / "script.json").read_text())
        if assignment.source.digest in self.prepared:
            print("prepared", flush=True)  # noqa: T201 - what a log catches
        if "gpus" in script:
            print(f"sees {os.environ['CUDA_VISIBLE_DEVICES']!r} of {gpus}", flush=True)  # noqa: T201, TID251
        for _ in range(script.get("ranks", 0)):
            subprocess.Popen([sys.executable, "-c", RANK])
        for line in script.get("print", ()):
            print(line, flush=True)  # noqa: T201 - what a log catches
        steps = 20
        for step in range(steps):
            time.sleep(script.get("weights_s", 0) / steps)  # noqa: TID251 - in a thread of its own
            stages.progress(Stage.WEIGHTS, step / steps)
        if "reaches" in script:
            print(_reached(*script["reaches"]), flush=True)  # noqa: T201 - what a log catches
        if "touches" in script:
            print(_touched(script["touches"]), flush=True)  # noqa: T201 - what a log catches
        held = [bytearray(b"x" * (1 << 20)) for _ in range(script.get("uses_mib", 0))]
        del held
        if "fails" in script:
            raise getattr(errors, script["fails"])(script.get("detail", "as the script says"))
        if "signal" in script:
            os.kill(os.getpid(), signal.Signals[script["signal"]])
        stages.done(Stage.WEIGHTS, source="mmap", size=1234)
        time.sleep(script.get("engine_s", 0))  # noqa: TID251 - in a thread of its own
        return Climbed(folder, ScriptedEngine(script=script), tokenizer=None, settle=None)

    def sleep(self) -> bool:
        return True


def _reached(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        return f"not reached: {errno.errorcode.get(error.errno or 0)}"
    return "reached"


def _touched(paths: list[str]) -> str:
    """Which of these files could be made."""
    made = []
    for path in paths:
        try:
            Path(path).write_text("here")
            made.append(path)
        except OSError:
            continue
    return f"made {made}"


class ScriptedServer:
    """Answers every connection with its pid, and drains as long as the script says."""

    def __init__(self, script: dict[str, Any], listening: int | None) -> None:
        self._script = script
        self._listening = listening
        self._closed = asyncio.Event()

    async def bind(self, host: str) -> int:
        if self._listening is not None:
            given = socket.socket(fileno=os.dup(self._listening))
            self._server = await asyncio.start_unix_server(self._answer, sock=given)
            return 0
        self._server = await asyncio.start_server(self._answer, host, 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def serve(self) -> None:
        await self._closed.wait()

    async def drain(self, deadline_s: float) -> bool:
        print("draining", flush=True)  # noqa: T201 - what a log catches
        await asyncio.sleep(self._script.get("drain_s", 0))
        return not self._script.get("is_cut_off", False)

    async def close(self) -> None:
        self._server.close()
        self._closed.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(os.getpid()).encode())
        writer.close()


def serve(descriptor: int, origin: Any, num_ranks: int, listening: int | None = None) -> NoReturn:
    def build_server(climbed: Climbed, assignment: ReplicaAssignment, clock: Clock) -> Server:
        assert isinstance(climbed.engine, ScriptedEngine)
        return ScriptedServer(climbed.engine.script, listening)

    fork_ranks(num_ranks, wait_for_the_end, closes=[descriptor])
    run_replica(descriptor, origin=origin, climb=ScriptedClimb(), build_server=build_server)


def wait_for_the_end(link: int) -> NoReturn:
    """All that a rank does without a model."""
    os.read(link, 1)
    leave(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--link", type=int)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--cache")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--socket")
    arguments = parser.parse_args()
    match arguments.program:
        case "node":
            program = (sys.executable, "-m", "tests.node.scripted_program")
            settings = NodeSettings()
            configure(level=settings.log_level, as_json=settings.log_format == "json")
            run_node(
                settings,
                program=program,
                environment=child_environment(),
                open_gpus=gpus_ahead(visible_gpus()),
            )
        case "zygote":
            begin("fl-zygote", parent=arguments.parent)
            run_zygote(
                arguments.link,
                preload=lambda: None,
                become=lambda descriptor, ranks: serve(descriptor, "fork", ranks),
            )
        case "replica" if arguments.socket is not None:
            begin("fl-replica", parent=None)
            link, listening = enter(arguments.socket)
            serve(link, "spawn", arguments.ranks, listening)
        case "replica":
            begin("fl-replica", parent=arguments.parent)
            serve(arguments.link, "spawn", arguments.ranks)


if __name__ == "__main__":
    main()
