"""Structured logs: events with facts, one JSON object a line or readable on a terminal."""

import logging
import sys
from contextlib import suppress
from typing import TextIO

import structlog


def configure(*, level: str = "info", as_json: bool, stream: TextIO | None = None) -> None:
    """Sets the process's one log format; call once, in main.

    What cannot be written, because the disk is full or the reader gone, is lost and breaks nothing.
    A traceback shows no values: those of locals are prompts and keys.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=(stream or sys.stderr).isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if as_json:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=lambda *_: _Forgiving(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


class _Forgiving(structlog.PrintLogger):
    """Never fails whoever logs."""

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg
