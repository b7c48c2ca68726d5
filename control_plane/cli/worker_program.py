"""Runs one of the worker's programs, which knows tensors, and shows what it says."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from control_plane.cli.failure import CommandFailed
from control_plane.cli.session import Session
from control_plane.cli.waiting import Waiting

KEPT_LINES = 20
PROGRAM = (sys.executable, "-m", "worker.main")


class _Progress(BaseModel):
    fraction: float
    step: str


class _Result(BaseModel):
    result: dict[str, Any]


class _Failure(BaseModel):
    error: str
    hint: str | None = None


def run_worker(
    session: Session, command: Sequence[str], *, doing: str, what: str
) -> dict[str, Any] | None:
    """Its result, if it has one; progress goes to a line that says `doing`.

    Raises CommandFailed with the worker's reason; `what` names what has ended without one.
    """
    failure: _Failure | None = None
    result: dict[str, Any] | None = None
    other: list[str] = []
    with (
        Waiting(session.err, doing, now=session.now) as waiting,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as worker,
    ):
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                match _parsed(line):
                    case _Progress(fraction=fraction, step=step):
                        waiting.show(f"{step} {fraction:.0%}")
                    case _Result(result=result):
                        pass
                    case _Failure() as failure:
                        pass
                    case _:
                        other = [*other, line.rstrip()][-KEPT_LINES:]
        except BaseException:
            worker.terminate()
            raise
    if worker.returncode == 0:
        return result
    if failure is not None:
        raise CommandFailed(failure.error, hint=failure.hint)
    raise CommandFailed(f"{what} ended with status {worker.returncode}", details=other)


def _parsed(line: str) -> _Progress | _Result | _Failure | None:
    for kind in (_Progress, _Result, _Failure):
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            continue
    return None
