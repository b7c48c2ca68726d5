"""How fast weights come into memory: from the page cache, from a disk, over HTTP; beside others."""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.engine_peers.install import NotInstalled, cache_folder, install, say
from benchmarks.gateway_peers.gateways import free_port
from worker.weights.plan import SINGLE_FILE

GIGABYTE = 1e9
LAYER_SHAPES = ((2048, 8192), (8192, 2048), (2048, 2048), (2048, 512), (2048,))
CASE_TIMEOUT_S = 300

RUNAI = "runai"


@dataclass(frozen=True, slots=True)
class Case:
    """One way; `is_cold` drops the file from the page cache first."""

    name: str
    title: str
    is_cold: bool = False


DIRECT = Case("direct", "O_DIRECT, 4 threads (the disk's pace)", is_cold=True)
FROM_DISK = Case("from_disk", "mapped, file on the disk", is_cold=True)
DISK = (DIRECT, FROM_DISK)
CASES = (
    Case("load_and_clone", "safetensors load_file + clone, file in the page cache"),
    Case("mapped", "mapped, file in the page cache"),
    *DISK,
    Case(RUNAI, "runai-model-streamer, S3 over HTTP, nothing verified"),
    Case("unverified", "streamed over HTTP, nothing to verify"),
    Case("verified", "streamed over HTTP, every chunk verified"),
    Case("verified_first", "streamed over HTTP, SHA-256 of the file in order"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """`what` is at least `least`."""

    what: str
    value: float | None
    least: float

    @property
    def is_met(self) -> bool:
        return self.value is not None and self.value >= self.least


def main() -> None:
    """Prints the table and every target; exit code 1 if one is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench weights", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.5, help="of the synthetic model")
    parser.add_argument("--rounds", type=int, default=3, help="medians are of so many")
    parser.add_argument("--no-peers", action="store_true", help="without runai-model-streamer")
    arguments = parser.parse_args()
    folder = synthetic_model(arguments.gigabytes)
    rates: dict[Case, list[float]] = {}
    with nginx(folder) as url:
        peer = None if arguments.no_peers else peer_python()
        for number in range(arguments.rounds):
            for case in in_turn(CASES, number):
                if case.name == RUNAI and peer is None:
                    continue
                rate = measure(case, folder, url, peer)
                say(f"{case.title}: {rate:.2f} GB/s")
                rates.setdefault(case, []).append(rate)
    medians = {case: statistics.median(values) for case, values in rates.items()}
    sys.exit(not show(medians, rates, arguments.gigabytes))


def in_turn(cases: Sequence[Case], number: int) -> list[Case]:
    """Every second round the other one of the two has the disk first, and both once more: what a
    disk gives depends on what it gave a moment ago.
    """
    disk = DISK if number % 2 == 0 else DISK[::-1]
    others = [case for case in cases if case not in DISK]
    return [*others[:2], *disk, *disk[::-1], *others[2:]]


def measure(case: Case, folder: Path, url: str, peer: Path | None) -> float:
    """GB/s of one run, in a process of its own."""
    prepare(folder / SINGLE_FILE, is_cold=case.is_cold)
    command = [sys.executable, "-m", "benchmarks.weights_peers.cases", case.name, str(folder), url]
    environment = dict(os.environ)  # noqa: TID251 - what a child inherits
    if case.name == RUNAI:
        program = Path(__file__).parent / "weights_peers" / "runai.py"
        command = [str(peer), str(program), f"s3://{folder.name}/{SINGLE_FILE}"]
        environment |= {
            "AWS_ENDPOINT_URL": url.rsplit("/", 1)[0],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RUNAI_STREAMER_S3_UNSIGNED": "1",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        }
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=CASE_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{case.title}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return float(found["bytes"] / found["seconds"] / GIGABYTE)


def prepare(path: Path, *, is_cold: bool) -> None:
    """Has the file in the page cache, or nowhere in it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if is_cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        while file.read(64 << 20):
            pass


def show(
    medians: Mapping[Case, float], rates: Mapping[Case, Sequence[float]], gigabytes: float
) -> bool:
    """Whether every target is met."""
    console = Console(width=120)
    table = Table("way", "GB/s", "runs", title=f"{gigabytes:g} GB of weights into memory")
    for case, rate in medians.items():
        runs = " ".join(f"{value:.2f}" for value in rates[case])
        table.add_row(case.title, f"{rate:.2f}", runs)
    console.print(table)
    verdicts = Table("target", "at least", "measured", "")
    for target in targets(medians):
        value = "not measured" if target.value is None else f"{target.value:.2f}"
        verdicts.add_row(target.what, f"{target.least:g}", value, "yes" if target.is_met else "NO")
    console.print(verdicts)
    return all(target.is_met for target in targets(medians))


def targets(medians: Mapping[Case, float]) -> tuple[Target, ...]:
    def of(name: str) -> float | None:
        return next((it for case, it in medians.items() if case.name == name), None)

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or below is None else above / below

    disk = ratio(of(FROM_DISK.name), of(DIRECT.name))
    return (
        Target("mapped, times load_file + clone", ratio(of("mapped"), of("load_and_clone")), 3),
        Target("streamed, nothing to verify, GB/s", of("unverified"), 2.5),
        Target("streamed, every chunk verified, GB/s", of("verified"), 1.5),
        Target("streamed, times runai-model-streamer", ratio(of("unverified"), of(RUNAI)), 3),
        Target("verified, times runai-model-streamer", ratio(of("verified"), of(RUNAI)), 3),
        Target("file on the disk, times O_DIRECT", disk, 0.9),
    )


def peer_python() -> Path | None:
    try:
        return install(RUNAI).python
    except NotInstalled as error:
        say(f"runai-model-streamer did not install, its rows will be missing: {error}")
        return None


def synthetic_model(gigabytes: float) -> Path:
    """A folder with one safetensors file of random bfloat16 tensors; kept for the next run."""
    folder = cache_folder() / "models" / f"synthetic-{gigabytes:g}gb"
    if (folder / SINGLE_FILE).exists():
        return folder
    say(f"making {gigabytes:g} GB of weights")
    folder.mkdir(parents=True, exist_ok=True)
    entries, end = {}, 0
    for number in range(1 << 16):
        for part, shape in enumerate(LAYER_SHAPES):
            size = 2 * int(np.prod(shape))
            entries[f"model.layers.{number}.part{part}.weight"] = {
                "dtype": "BF16",
                "shape": list(shape),
                "data_offsets": [end, end + size],
            }
            end += size
        if end >= gigabytes * GIGABYTE:
            break
    text = json.dumps(entries).encode()
    text = text.ljust(-(-(len(text) + 8) // 64) * 64 - 8)
    random = np.random.default_rng(1).integers(0, 255, 64 << 20, dtype=np.uint8)
    partial = folder / "partial"
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(random)):
            file.write(np.roll(random, start // len(random))[: end - start].tobytes())
        os.fsync(file.fileno())
    partial.rename(folder / SINGLE_FILE)
    return folder


_NGINX = """
daemon off; {user} worker_processes 2; pid {run}/pid; error_log {run}/error.log error;
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_body_temp_path {run}/b; proxy_temp_path {run}/p; fastcgi_temp_path {run}/f;
  uwsgi_temp_path {run}/u; scgi_temp_path {run}/s;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """Serves what is beside the model on loopback; yields the URL of the model's folder."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise SystemExit("there is no nginx: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="firstlight-nginx-") as run:
        port = free_port()
        user = "user root;" if os.getuid() == 0 else ""  # else its workers are somebody else
        config = Path(run) / "nginx.conf"
        config.write_text(_NGINX.format(user=user, run=run, port=port, root=folder.parent))
        process = subprocess.Popen([program, "-p", run, "-c", str(config)])
        try:
            until_listening(port, process)
            yield f"http://127.0.0.1:{port}/{folder.name}"
        finally:
            process.terminate()
            process.wait()


def until_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 10
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("nginx does not listen")
        time.sleep(0.02)  # noqa: TID251 - a real process keeps real time


if __name__ == "__main__":
    main()
