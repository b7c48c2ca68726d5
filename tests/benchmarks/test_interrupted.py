"""A benchmark that is told to stop."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.processes import called, descendants, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

COMMAND = "-m benchmarks.engine --ours-only --formats bf16 --sections prefill --rounds 1000"


@pytest.fixture
def benchmark_run(
    environment: dict[str, str], smollm2_dir: Path
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *COMMAND.split()],
        env=environment | {"FIRSTLIGHT_TEST_MODEL": str(smollm2_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.wait()


def until_a_server_starts(benchmark_run: subprocess.Popen[str]) -> None:
    until(
        lambda: called(descendants(benchmark_run.pid), "fl-replica"),
        seconds=100,
        what="a replica climbs",
    )


def until_it_measures(benchmark_run: subprocess.Popen[str]) -> None:
    assert benchmark_run.stderr is not None
    while "/prefill/" not in (line := benchmark_run.stderr.readline()):
        assert line, "it ended early"


@pytest.mark.parametrize(
    ("number", "until_then"),
    [(signal.SIGINT, until_it_measures), (signal.SIGTERM, until_a_server_starts)],
)
def test_an_interrupted_benchmark_takes_its_servers_along_and_says_so_in_a_line(
    benchmark_run: subprocess.Popen[str],
    number: signal.Signals,
    until_then: Callable[[subprocess.Popen[str]], None],
) -> None:
    until_then(benchmark_run)
    started = psutil.Process(benchmark_run.pid).children(recursive=True)
    assert started

    os.killpg(benchmark_run.pid, number)  # as a terminal does
    _, said = benchmark_run.communicate(timeout=60)

    assert benchmark_run.returncode == 130
    assert said.splitlines()[-1] == "==> interrupted: every server that was started has ended"
    assert "Traceback" not in said
    assert not any(process.is_running() for process in started)
