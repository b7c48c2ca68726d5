"""Has images indexed by the snapshotter's program, beside us and behind everything else."""

import asyncio
import json
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from control_plane.deployments.image_indexer import OnProgress
from infra.contracts.image_index import ImageIndexed, IndexFailed, IndexProgress, index_line
from infra.errors import (
    DependencyMissing,
    ImageInvalid,
    ImageUnavailable,
    PlatformError,
    SourceUnavailable,
)
from infra.tether import tethered

PROGRAM: Final = (sys.executable, "-m", "snapshotter.main", "index", "--background")
MOST_S: Final = 4 * 3600.0
_LONGEST_LINE: Final = 64 << 10
_LAST_WORDS: Final = 2000  # bytes
_SETTINGS: Final = "PLATFORM_SNAPSHOTTER_"
_PLAIN_HTTP: Final = f"{_SETTINGS}PLAIN_HTTP"
_KINDS: Final[Mapping[str, type[PlatformError]]] = {
    kind.slug: kind for kind in (SourceUnavailable, ImageInvalid, DependencyMissing)
}


class IndexProgram:
    """See ImageIndexer. One at a time: `scratch` is its folder, for layers while they are read.

    It dies with this process, has the lowest priority, and is a program because it reads archives
    that strangers made.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        scratch: Path,
        *,
        plain_http: frozenset[str] = frozenset(),
        command: tuple[str, ...] = PROGRAM,
    ) -> None:
        self._environment = _environment(environment, plain_http)
        self._scratch = scratch
        self._command = command

    async def index(self, image: str, on_progress: OnProgress) -> ImageIndexed:
        try:
            async with asyncio.timeout(MOST_S):
                return await self._run(image, on_progress)
        except TimeoutError as error:
            raise ImageUnavailable(f"its index was not made in {MOST_S / 3600:g} h") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def _run(self, image: str, on_progress: OnProgress) -> ImageIndexed:
        await asyncio.to_thread(self._scratch.mkdir, parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *tethered(*self._command, image),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=_LONGEST_LINE,
            env={**self._environment, "TMPDIR": str(self._scratch)},
        )
        try:
            async with asyncio.TaskGroup() as both:
                hearing = both.create_task(_hear(process, on_progress))
                complaining = both.create_task(_last_words(process))
            await process.wait()
        except* ValueError as errors:
            raise ImageUnavailable(f"the program that indexes: {errors.exceptions[0]}") from errors
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        match hearing.result():
            case ImageIndexed() as indexed:
                return indexed
            case IndexFailed(code=code, detail=detail, hint=hint):
                raise _KINDS.get(code, ImageUnavailable)(detail, hint=hint)
            case None:
                why = complaining.result() or f"status {process.returncode}"
                raise ImageUnavailable(f"the program that indexes ended: {why}")


async def _hear(process: Process, on_progress: OnProgress) -> ImageIndexed | IndexFailed | None:
    assert process.stdout is not None
    outcome = None
    while line := await process.stdout.readline():
        match index_line.validate_json(line):
            case IndexProgress(fraction=fraction):
                on_progress(fraction)
            case said:
                outcome = said
    return outcome


async def _last_words(process: Process) -> str:
    """The last line of what it complains of; all of it is read, so that it never waits for us."""
    assert process.stderr is not None
    said = b""
    while data := await process.stderr.read(_LAST_WORDS):
        said = (said + data)[-_LAST_WORDS:]
    return (said.decode(errors="replace").strip().splitlines() or [""])[-1]


def _environment(inherited: Mapping[str, str], plain_http: frozenset[str]) -> dict[str, str]:
    """The snapshotter's own settings and what is no setting of ours: no key of this platform."""
    environment = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("PLATFORM_") or name.startswith(_SETTINGS)
    }
    environment.setdefault(_PLAIN_HTTP, json.dumps(sorted(plain_http)))
    return environment
