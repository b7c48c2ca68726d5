"""The importer as a program: progress and the reason of a failure as JSON lines."""

import json
from pathlib import Path
from typing import TextIO

from infra.errors import PlatformError


def run_import(source: Path, target: Path, out: TextIO) -> int:
    """Imports a GGUF and returns the exit code.

    Lines are `{"fraction": 0.4, "step": "weights"}`, one for each percent, and at most one
    `{"error": …, "hint": …}`.
    """

    def say(line: dict[str, object]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    said: tuple[int, str] | None = None

    def on_progress(fraction: float, step: str) -> None:
        nonlocal said
        if (news := (int(fraction * 100), step)) != said:
            said = news
            say({"fraction": round(fraction, 4), "step": step})

    try:
        from worker.weights.gguf_import import import_gguf

        import_gguf(source, target, on_progress)
    except PlatformError as error:
        say({"error": error.detail, "hint": error.hint})
        return 1
    except ImportError as error:
        say(
            {
                "error": f"importing needs the package {error.name}",
                "hint": "pip install 'firstlight[worker]'",
            }
        )
        return 1
    return 0
