"""Has images indexed by the snapshotter's program, beside us and behind everything else."""

import asyncio
import json
import shutil
import sys
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
from infra.heard_program import run_heard

PROGRAM: Final = (sys.executable, "-m", "snapshotter.main", "index", "--background")
MOST_S: Final = 4 * 3600.0
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

    async def index(self, image: str, on_progress: OnProgress, *, pin: str | None) -> ImageIndexed:
        try:
            async with asyncio.timeout(MOST_S):
                return await self._run(image, on_progress, pin)
        except TimeoutError as error:
            raise ImageUnavailable(f"its index was not made in {MOST_S / 3600:g} h") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def _run(self, image: str, on_progress: OnProgress, pin: str | None) -> ImageIndexed:
        outcome: ImageIndexed | IndexFailed | None = None

        def hear(line: bytes) -> None:
            nonlocal outcome
            match index_line.validate_json(line):
                case IndexProgress(fraction=fraction):
                    on_progress(fraction)
                case said:
                    outcome = said

        await asyncio.to_thread(self._scratch.mkdir, parents=True, exist_ok=True)
        environment = {**self._environment, "TMPDIR": str(self._scratch)}
        try:
            pinned = () if pin is None else ("--index", pin)
            end = await run_heard((*self._command, *pinned, image), environment, hear)
        except ValueError as error:
            raise ImageUnavailable(f"the program that indexes: {error}") from error
        match outcome:
            case ImageIndexed() as indexed:
                return indexed
            case IndexFailed(code=code, detail=detail, hint=hint):
                raise _KINDS.get(code, ImageUnavailable)(detail, hint=hint)
            case None:
                raise ImageUnavailable(f"the program that indexes ended: {end.why}")


def _environment(inherited: Mapping[str, str], plain_http: frozenset[str]) -> dict[str, str]:
    """The snapshotter's own settings and what is no setting of ours: no key of this platform."""
    environment = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("PLATFORM_") or name.startswith(_SETTINGS)
    }
    environment.setdefault(_PLAIN_HTTP, json.dumps(sorted(plain_http)))
    return environment
