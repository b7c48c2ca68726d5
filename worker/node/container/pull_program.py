"""Pulls with a program of its own, which says on its output how far it is."""

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process

from infra.contracts.image_pull import Pulled, PullFailed, PullProgress, pull_line
from infra.errors import ImageUnavailable
from infra.tether import tethered
from worker.node.container.image import OnProgress

LONGEST_LINE = 64 << 10
_LAST_WORDS = 2000  # bytes


class PullProgram:
    """`command` is the program without the reference, which is its last argument; see Puller.

    It dies with this process, and with whoever waits for it.
    """

    def __init__(self, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self._command = command
        self._environment = environment

    async def pull(self, reference: str, on_progress: OnProgress) -> Pulled:
        process = await asyncio.create_subprocess_exec(
            *tethered(*self._command, reference),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=LONGEST_LINE,
            env=self._environment,
        )
        try:
            async with asyncio.TaskGroup() as both:
                hearing = both.create_task(_hear(process, on_progress))
                complaining = both.create_task(_last_words(process))
            await process.wait()
        except* ValueError as errors:
            raise ImageUnavailable(f"{reference}: {errors.exceptions[0]}") from errors
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        pulled = hearing.result()
        if process.returncode == 0 and pulled is not None:
            return pulled
        why = complaining.result() or f"the program that pulls exited {process.returncode}"
        raise ImageUnavailable(f"{reference}: {why}")


async def _hear(process: Process, on_progress: OnProgress) -> Pulled | None:
    assert process.stdout is not None
    pulled = None
    while line := await process.stdout.readline():
        said = pull_line.validate_json(line)
        match said:
            case PullProgress():
                on_progress(said.fraction)
            case Pulled():
                pulled = said
            case PullFailed():  # only the service says it so
                raise ValueError(said.detail)
    return pulled


async def _last_words(process: Process) -> str:
    """The last line of what it complains of; all of it is read, so that it never waits for us."""
    assert process.stderr is not None
    said = b""
    while data := await process.stderr.read(_LAST_WORDS):
        said = (said + data)[-_LAST_WORDS:]
    lines = said.decode(errors="replace").strip().splitlines()
    complaints = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (complaints or lines or [""])[-1]
