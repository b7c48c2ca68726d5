"""Looks at real processes: who is still there."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil
import pytest

IN_CI = os.environ.get("CI") == "true"  # noqa: TID251 - the tests' one switch


def require(available: object, what: str) -> None:
    """A missing real component fails in CI and skips, loudly, on a laptop."""
    if available:
        return
    if IN_CI:
        pytest.fail(f"{what} is missing; scripts/install should have provided it")
    pytest.skip(f"{what} is missing: run scripts/install")


def until(condition: Callable[[], object], *, seconds: float, what: str) -> None:
    """Waits for real processes to do something; fails with `what` when they do not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.02)  # noqa: TID251 - real processes keep real time


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below `pid`, itself included; none when it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def runs(process: psutil.Process) -> bool:
    """Whether it still does (a zombie does not)."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def called(processes: Iterable[psutil.Process], name: str) -> list[psutil.Process]:
    """Those of the name that they gave themselves, zombies too; any may end meanwhile."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.name() == name:
                found.append(process)
    return found


def running(processes: Iterable[psutil.Process], name: str) -> list[psutil.Process]:
    """Those of that name that run."""
    return [process for process in called(processes, name) if runs(process)]


def alive(processes: Iterable[psutil.Process]) -> list[str]:
    """Command lines of those that still run."""
    lines = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if runs(process):
                lines.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
    return lines
