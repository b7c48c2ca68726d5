"""Traces on this node's disk, a file for each image and entrypoint."""

from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog

from infra.errors import ImageInvalid
from infra.registry.reference import DIGEST
from snapshotter.trace.trace import MOST_TRACE_BYTES, Trace, better

log = structlog.get_logger()

_MOST_FILES: Final = 1000


class TraceFiles:
    """The oldest go when there are too many. Any thread may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep(self, trace: Trace) -> None:
        """Keeps it, unless what is kept says more. A disk that refuses costs the trace only."""
        path = self._path(trace.image, trace.entrypoint)
        if better(self._read(path), trace) is not trace:
            return
        try:
            partial = path.with_suffix(".partial")
            partial.write_bytes(trace.packed())
            partial.replace(path)
            for old in self._newest_first()[_MOST_FILES:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("trace.not_kept", image=trace.image, error=error.strerror)

    def find(self, image: str, entrypoint: str | None = None) -> Trace | None:
        """The trace of that program, or the newest one of the image."""
        if entrypoint is not None:
            return self._read(self._path(image, entrypoint))
        prefix = f"{_hex(image)}-"
        of_image = (path for path in self._newest_first() if path.name.startswith(prefix))
        return next(filter(None, map(self._read, of_image)), None)

    def _newest_first(self) -> list[Path]:
        paths = []
        for path in self._folder.glob("*.trace"):
            try:
                paths.append((path.stat().st_mtime_ns, path))
            except FileNotFoundError:  # another thread removed it
                continue
        return [path for _, path in sorted(paths, reverse=True)]

    def _path(self, image: str, entrypoint: str) -> Path:
        program = sha256(entrypoint.encode()).hexdigest()[:16]
        return self._folder / f"{_hex(image)}-{program}.trace"

    def _read(self, path: Path) -> Trace | None:
        try:
            with path.open("rb") as file:
                return Trace.parse(file.read(MOST_TRACE_BYTES + 1))
        except FileNotFoundError:
            return None
        except (OSError, ImageInvalid) as error:
            log.warning("trace.unreadable", file=path.name, error=str(error))
            return None


def _hex(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise ImageInvalid(f"the image's digest is {digest[:100]!a}")
    return digest.removeprefix("sha256:")
