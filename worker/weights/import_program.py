"""The importer as a program."""

from pathlib import Path
from typing import TextIO

from infra.json_program import OnProgress, run_json_program


def run_import(source: Path, target: Path, out: TextIO) -> int:
    """Imports a GGUF and returns the exit code; see `run_json_program` for what it writes."""

    def work(on_progress: OnProgress) -> None:
        from worker.weights.gguf_import import import_gguf

        import_gguf(source, target, on_progress)

    return run_json_program(work, out, doing="importing")
