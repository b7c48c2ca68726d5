"""`platform models import`: has the worker turn a GGUF into a folder that can be deployed."""

from collections.abc import Sequence
from pathlib import Path

from control_plane.cli.session import Session
from control_plane.cli.worker_program import PROGRAM, run_worker


def import_command(source: Path, target: Path) -> list[str]:
    """The worker's own program: this one knows no tensors."""
    return [*PROGRAM, "import-gguf", str(source.absolute()), str(target.absolute())]


def import_model(session: Session, source: Path, command: Sequence[str]) -> None:
    """Runs the worker and shows its progress lines; raises CommandFailed with its reason."""
    run_worker(session, command, doing=f"importing {source.name}", what="the import")
