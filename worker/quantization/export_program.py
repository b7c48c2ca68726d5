"""The export as a program."""

from pathlib import Path
from typing import TextIO

from infra.json_program import OnProgress, run_json_program


def run_export(source: Path, target: Path, out: TextIO) -> int:
    """Exports a model and returns the exit code; see `run_json_program` for what it writes."""

    def work(on_progress: OnProgress) -> None:
        from worker.quantization.export import export_int8

        export_int8(source, target, on_progress)

    return run_json_program(work, out, doing="exporting")
