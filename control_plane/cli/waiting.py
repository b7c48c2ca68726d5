"""One live line on standard error while something is awaited; gone when it is over."""

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from control_plane.cli.units import elapsed

REFRESH_PER_SECOND: Final = 12


class Waiting:
    """`with Waiting(...) as waiting: … waiting.show("weights 40%")`.

    Draws only on a terminal: what a log file keeps is said in lines of its own.
    """

    def __init__(self, console: Console, what: str, *, now: Callable[[], float]) -> None:
        self._what = what
        self._step = ""
        self._now = now
        self._started_at = now()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            get_renderable=self._line,
            console=console,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._is_drawn = console.is_terminal

    def show(self, step: str) -> None:
        """What it is doing now."""
        self._step = step

    def stop(self) -> None:
        """Takes the line away; may be repeated."""
        if self._is_drawn:
            self._live.stop()

    def __enter__(self) -> Self:
        if self._is_drawn:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _line(self) -> Spinner:
        waited = elapsed(self._now() - self._started_at)
        step = f"  {self._step}" if self._step else ""
        self._spinner.update(text=Text(f"{self._what}{step}  {waited}"))
        return self._spinner
