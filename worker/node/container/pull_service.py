"""Has the snapshotter of this node pull: it runs already, and knows its registries."""

import asyncio
from asyncio import StreamReader
from contextlib import suppress
from pathlib import Path

from infra.contracts.image_pull import (
    Pulled,
    PullFailed,
    PullLine,
    PullOrder,
    PullProgress,
    pull_line,
)
from infra.errors import ImageUnavailable
from worker.node.container.image import OnProgress

LONGEST_LINE = 64 << 10


class PullService:
    """See Puller; `path` is the snapshotter's socket. Who waits no longer hangs up: it ends."""

    def __init__(self, path: Path, *, containerd: Path, namespace: str, snapshotter: str) -> None:
        self._path = path
        self._containerd = containerd
        self._namespace = namespace
        self._snapshotter = snapshotter

    async def pull(
        self, reference: str, on_progress: OnProgress, *, index: str | None = None
    ) -> Pulled:
        order = PullOrder(
            reference=reference,
            containerd=self._containerd,
            namespace=self._namespace,
            snapshotter=self._snapshotter,
            index=index,
        )
        try:
            reader, writer = await asyncio.open_unix_connection(self._path, limit=LONGEST_LINE)
            try:
                writer.write(order.model_dump_json().encode() + b"\n")
                return await _outcome(reader, reference, on_progress)
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
        except (OSError, ValueError) as error:
            raise ImageUnavailable(f"{reference}: the snapshotter: {error}") from error


async def _outcome(reader: StreamReader, reference: str, on_progress: OnProgress) -> Pulled:
    while line := await reader.readline():
        said: PullLine = pull_line.validate_json(line)
        match said:
            case PullProgress():
                on_progress(said.fraction)
            case Pulled():
                return said
            case PullFailed():
                raise ImageUnavailable(f"{reference}: {said.detail}")
    raise ImageUnavailable(f"{reference}: the snapshotter ended while it pulled")
