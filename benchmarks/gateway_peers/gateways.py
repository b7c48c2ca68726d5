"""The gateways that are compared, each on one core before the same replica."""

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.engine_peers.install import Environment, NotInstalled, cache_folder, run

KEY = "benchmark-key-of-the-gateway"
NODE_KEY = "benchmark-key-of-the-node"
LOAD_CORE, GATEWAY_CORE = 0, 1
_START_S = 30.0

_VLLM_ROUTER = "vllm-router==0.1.17"

_NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000000; client_body_buffer_size 64k;
  upstream replica {{ server 127.0.0.1:{upstream}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://replica; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Gateway:
    """One that listens; its cost is that of all its processes."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """Seconds its processes have computed so far."""
        times = [one.cpu_times() for one in self._processes()]
        return sum(one.user + one.system for one in times)

    def pss_bytes(self) -> int:
        """Memory of its processes, shared pages divided."""
        return sum(one.memory_full_info().pss for one in self._processes())

    def own_pss_bytes(self) -> int:
        """Memory of the process that relays, without those beside it."""
        return int(self.process.memory_full_info().pss)

    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def on_gateway_core() -> Iterator[None]:
    """What is started within runs on the gateway's core."""
    this = psutil.Process()
    this.cpu_affinity([GATEWAY_CORE])
    try:
        yield
    finally:
        this.cpu_affinity([LOAD_CORE])


@contextmanager
def nginx(upstream: int) -> Iterator[Gateway]:
    """Debian's, with connections kept to the replica. Raises NotInstalled."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise NotInstalled("there is no nginx: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="firstlight-nginx-") as folder:
        port = free_port()
        config = Path(folder) / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, upstream=upstream, port=port))
        Path(folder).chmod(0o755)  # its worker is another user when root starts it
        with _running([program, "-p", folder, "-c", str(config)], port) as gateway:
            yield gateway


@contextmanager
def vllm_router(upstream: int) -> Iterator[Gateway]:
    """From PyPI, in an environment of its own. Raises NotInstalled."""
    environment = Environment(cache_folder() / "vllm-router")
    program = environment.folder / "bin" / "vllm-router"
    if not program.exists():
        run(["python3", "-m", "venv", str(environment.folder)])
        environment.pip("install", "-qq", _VLLM_ROUTER)
    port, metrics_port = free_port(), free_port()
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--worker-urls", f"http://127.0.0.1:{upstream}", "--log-level", "error"]
    command += ["--prometheus-port", str(metrics_port), "--prometheus-host", "127.0.0.1"]
    with _running(command, port) as gateway:
        yield gateway


@contextmanager
def _running(command: list[str], port: int) -> Iterator[Gateway]:
    with tempfile.TemporaryFile() as log:
        with on_gateway_core():
            process = subprocess.Popen(command, stdout=log, stderr=log)
        gateway = Gateway(port, psutil.Process(process.pid))
        try:
            _until_listening(port, process)
            yield gateway
        except NotInstalled:
            log.seek(0)
            words = log.read().decode(errors="replace").strip().splitlines()
            raise NotInstalled(words[-1] if words else f"{command[0]} did not start") from None
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.perf_counter() + _START_S
    while time.perf_counter() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)  # noqa: TID251 - a real process keeps real time
    raise NotInstalled("it does not listen")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until_answering(port: int, sent: bytes) -> None:
    """Returns once a request through the gateway is answered with 200."""
    from benchmarks.gateway_peers import load

    deadline = time.perf_counter() + _START_S
    while not (seen := await load.run(port, sent, connections=1, rounds=1)).answered:
        if time.perf_counter() > deadline:
            raise NotInstalled(f"it does not answer: {seen.first_failure[-300:]!r}")
        await asyncio.sleep(0.1)
