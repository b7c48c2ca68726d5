"""Pulls with a program of its own, which says on its output how far it is."""

from infra.contracts.image_pull import Pulled, PullFailed, PullProgress, pull_line
from infra.errors import ImageUnavailable
from infra.heard_program import run_heard
from worker.node.container.image import OnProgress


class PullProgram:
    """`command` is the program without the reference, which is its last argument; see Puller."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self._command = command
        self._environment = environment

    async def pull(
        self, reference: str, on_progress: OnProgress, *, index: str | None = None
    ) -> Pulled:
        pulled: Pulled | None = None

        def hear(line: bytes) -> None:
            nonlocal pulled
            match pull_line.validate_json(line):
                case PullProgress(fraction=fraction):
                    on_progress(fraction)
                case Pulled() as said:
                    pulled = said
                case PullFailed(detail=detail):  # only the service says it so
                    raise ValueError(detail)

        pinned = () if index is None else ("--index", index)
        try:
            end = await run_heard((*self._command, *pinned, reference), self._environment, hear)
        except ValueError as error:
            raise ImageUnavailable(f"{reference}: {error}") from error
        if end.status == 0 and pulled is not None:
            return pulled
        raise ImageUnavailable(f"{reference}: the program that pulls ended: {end.why}")
