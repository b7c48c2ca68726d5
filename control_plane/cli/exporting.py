"""`platform models export`: has the worker write a model with weights of 8 bits."""

from collections.abc import Sequence
from pathlib import Path

from control_plane.cli.session import Session
from control_plane.cli.worker_program import PROGRAM, run_worker


def export_command(source: Path, target: Path) -> list[str]:
    """The worker's own program: this one knows no tensors."""
    return [*PROGRAM, "export", str(source.absolute()), str(target.absolute())]


def export_model(session: Session, source: Path, command: Sequence[str]) -> None:
    """Runs the worker; raises CommandFailed with its reason."""
    run_worker(session, command, doing=f"exporting {source.name}", what="the export")
