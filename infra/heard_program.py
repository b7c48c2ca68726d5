"""Runs a program that says on its output, a line at a time, how far it is."""

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from infra.tether import tethered

LONGEST_LINE: Final = 64 << 10
_LAST_WORDS: Final = 2000  # bytes


@dataclass(frozen=True, slots=True)
class ProgramEnd:
    """How a program ended, and the last line of what it complained of, if it did."""

    status: int
    complaint: str

    @property
    def why(self) -> str:
        return self.complaint or f"status {self.status}"


async def run_heard(
    command: Sequence[str], environment: Mapping[str, str], hear: Callable[[bytes], None]
) -> ProgramEnd:
    """`hear` gets each line of its output. It dies with this process, and with whoever waits here.

    Raises ValueError for a line that is longer than 64 KiB, or that `hear` refuses so.
    """
    process = await asyncio.create_subprocess_exec(
        *tethered(*command),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        limit=LONGEST_LINE,
        env=environment,
    )
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_hear_all(process, hear))
            complaining = both.create_task(_complaint(process))
        status = await process.wait()
    except* ValueError as errors:
        raise ValueError(str(errors.exceptions[0])) from errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return ProgramEnd(status, complaining.result())


async def _hear_all(process: Process, hear: Callable[[bytes], None]) -> None:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        hear(line)


async def _complaint(process: Process) -> str:
    """All of what it complains of is read, so that it never waits for us."""
    assert process.stderr is not None
    said = b""
    while data := await process.stderr.read(_LAST_WORDS):
        said = (said + data)[-_LAST_WORDS:]
    lines = said.decode(errors="replace").strip().splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
