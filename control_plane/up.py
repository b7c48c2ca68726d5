"""The platform's own process: what `platform up` becomes."""

import argparse
import sys
from typing import Any

FAILED = 1
MISUSED = 2


def main() -> int:
    """Runs until it is told to stop; the exit code is one of the command line's."""
    # structlog would load it to paint tracebacks: a twentieth of this process's memory.
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog
    import uvloop
    from pydantic import ValidationError

    from control_plane.compiled import library

    is_compiled = library.use()  # before anything of what it replaces is imported
    from control_plane.process import serve
    from control_plane.settings import Settings
    from infra import logs
    from infra.errors import PlatformError

    parser = argparse.ArgumentParser(prog="platform up")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    chosen: dict[str, Any] = vars(parser.parse_args())
    try:
        settings = Settings(**{name: it for name, it in chosen.items() if it is not None})
    except ValidationError as error:
        for problem in error.errors():
            name = "PLATFORM_" + "_".join(str(part) for part in problem["loc"]).upper()
            _complain(f"{name}: {problem['msg']}", "see docs/settings.md")
        return MISUSED
    logs.configure(level=settings.log_level, as_json=settings.log_format == "json")
    if not is_compiled:
        log = structlog.get_logger()
        log.warning("gateway.interpreted", costs="twice as much", hint="run scripts/install")
    try:
        uvloop.run(serve(settings))
    except PlatformError as error:
        _complain(error.detail, error.hint)
        return FAILED
    return 0


def _complain(error: str, hint: str | None) -> None:
    sys.stderr.write(f"error: {error}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")


if __name__ == "__main__":
    sys.exit(main())
