"""The command group that tells every failure in one voice: `error:`, `hint:`, exit code 1 or 2."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from control_plane.cli.failure import CommandFailed, from_platform_error
from control_plane.cli.session import printable
from infra.errors import PlatformError

FAILED = 1
MISUSED = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class PlatformGroup(TyperGroup):
    """Exits 0, 1 (the operation failed), 2 (it was asked wrongly) or 130 (Ctrl-C)."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(
                args, prog_name or self.name, complete_var, False, windows_expand_args, **extra
            )
        except CommandFailed as failure:
            complain(failure)
            code = FAILED
        except PlatformError as error:
            complain(from_platform_error(error))
            code = FAILED
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as error:
            if not _is_usage_error(error):
                raise
            _explain_usage(error)
            code = MISUSED
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def complain(failure: CommandFailed) -> None:
    """Writes the failure to standard error."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(printable(failure.message)))
    for detail in failure.details:
        console.print(Text(f"  {printable(detail)}"))
    if failure.hint:
        console.print(Text("hint: ", style="bold cyan") + Text(printable(failure.hint)))


def _is_usage_error(error: Exception) -> bool:
    """Typer's own errors come from a library it keeps to itself; this is what marks them."""
    return getattr(error, "exit_code", None) == MISUSED and hasattr(error, "format_message")


def _explain_usage(error: Any) -> None:
    message = error.format_message().strip().rstrip(".")
    if message.startswith("Usage:"):  # nothing was asked: the help is the answer
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(message))
        return
    message = message.replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "platform"
    complain(CommandFailed(message[:1].lower() + message[1:], hint=f"{command} --help"))
