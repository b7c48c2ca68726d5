"""A program that another one runs: progress, result and the reason of a failure as JSON lines."""

import json
from collections.abc import Callable
from typing import TextIO

from pydantic import BaseModel

from infra.errors import PlatformError

OnProgress = Callable[[float, str], None]


def run_json_program(
    work: Callable[[OnProgress], BaseModel | None], out: TextIO, *, doing: str
) -> int:
    """Does the work and returns the exit code.

    Lines are `{"fraction": 0.4, "step": "weights"}`, one for each percent, then at most one
    `{"result": …}` or `{"error": …, "hint": …}`. `doing` is for a package that is missing.
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
        result = work(on_progress)
    except PlatformError as error:
        say({"error": error.detail, "hint": error.hint})
        return 1
    except ImportError as error:
        say(
            {
                "error": f"{doing} needs the package {error.name}",
                "hint": "pip install 'firstlight[worker]'",
            }
        )
        return 1
    if result is not None:
        say({"result": result.model_dump(mode="json")})
    return 0
