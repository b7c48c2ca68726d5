"""`platform models import`: has the worker turn a GGUF into a folder that can be deployed."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from control_plane.cli.failure import CommandFailed
from control_plane.cli.session import Session
from control_plane.cli.waiting import Waiting

KEPT_LINES = 20


class _Progress(BaseModel):
    fraction: float
    step: str


class _Failure(BaseModel):
    error: str
    hint: str | None = None


def import_command(source: Path, target: Path) -> list[str]:
    """The worker's own program: this one knows no tensors."""
    return [
        sys.executable,
        "-m",
        "worker.main",
        "import-gguf",
        str(source.absolute()),
        str(target.absolute()),
    ]


def import_model(session: Session, source: Path, command: Sequence[str]) -> None:
    """Runs the worker and shows its progress lines; raises CommandFailed with its reason."""
    failure: _Failure | None = None
    other: list[str] = []
    with (
        Waiting(session.err, f"importing {source.name}", now=session.now) as waiting,
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
                    case _Failure() as failure:
                        pass
                    case _:
                        other = [*other, line.rstrip()][-KEPT_LINES:]
        except BaseException:
            worker.terminate()
            raise
    if worker.returncode == 0:
        return
    if failure is not None:
        raise CommandFailed(failure.error, hint=failure.hint)
    raise CommandFailed(f"the import ended with status {worker.returncode}", details=other)


def _parsed(line: str) -> _Progress | _Failure | None:
    for kind in (_Progress, _Failure):
        try:
            return kind.model_validate_json(line)
        except ValidationError:
            continue
    return None
