"""Draws where the wait of a cold request went: one bar a stage, placed by when it happened."""

from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from control_plane.cli.units import amount, milliseconds
from infra.contracts.stage import ColdStartReport, Stage, StageShare

STYLES = {
    Stage.QUEUE: "bright_black",
    Stage.PROVISION: "magenta",
    Stage.IMAGE: "blue",
    Stage.RUNTIME: "yellow",
    Stage.WEIGHTS: "cyan",
    Stage.ENGINE: "green",
    Stage.PREFILL: "bright_blue",
}
LABEL_WIDTH = 14
SHOWN_PART_S = 0.0005
UNATTRIBUTED = "unattributed"
TOTAL = "total"
MAX_BAR_WIDTH = 60
MIN_BAR_WIDTH = 10
FIXED_WIDTH = 54  # columns beside the bars: stage, time, bytes, source
COMPARED_WIDTH = 48  # columns beside both bars of a comparison: stage, two times, change

_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Canvas:
    """How wide bars may be, and whether the terminal has block characters."""

    width: int
    has_blocks: bool = True

    def bar(self, offset: float, length: float, style: str) -> Text:
        """A bar at its place; both as shares of the width. Nothing is too short to be seen."""
        start = min(int(offset * self.width + 1e-9), self.width - 1)
        eighths = max(1, round((offset + length) * self.width * 8) - start * 8)
        eighths = min(eighths, (self.width - start) * 8)
        if self.has_blocks:
            drawn = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        else:
            drawn = "#" * max(1, round(eighths / 8))
        return Text(" " * start) + Text(drawn, style=style)


def canvas(console_width: int, encoding: str, *, beside: int, bars: int = 1) -> Canvas:
    """The canvas that fits a console."""
    room = (console_width - beside) // bars
    has_blocks = encoding.lower().replace("-", "").startswith("utf")
    return Canvas(max(MIN_BAR_WIDTH, min(MAX_BAR_WIDTH, room)), has_blocks)


def waterfall(report: ColdStartReport, canvas: Canvas) -> RenderableType:
    """One request's stages in order of time; they and `unattributed` add up to the total."""
    table = Table.grid(
        Column(no_wrap=True, min_width=LABEL_WIDTH),
        Column(justify="right", no_wrap=True),
        Column(no_wrap=True, min_width=canvas.width),
        Column(justify="right", no_wrap=True),
        Column(no_wrap=True, overflow="ellipsis"),
        padding=(0, 1),
    )
    scale = 1 / max(report.ttft_s, 1e-9)
    for share in report.shares:
        style = STYLES[share.stage]
        table.add_row(
            Text(f"  {share.stage.value}", style=style),
            milliseconds(share.seconds),
            canvas.bar(share.offset_s * scale, share.seconds * scale, style),
            "" if share.bytes is None else amount(share.bytes),
            _source(share),
        )
        for part in share.parts:
            if part.seconds >= SHOWN_PART_S:
                table.add_row(
                    Text(f"    {part.name}", style="dim"),
                    Text(milliseconds(part.seconds), style="dim"),
                )
    table.add_row(f"  {UNATTRIBUTED}", milliseconds(report.unattributed_s))
    table.add_row(
        Text(f"  {TOTAL}", style="bold"),
        Text(milliseconds(report.ttft_s), style="bold"),
        "to the first token",
    )
    return Group(_heading(report), table)


def _source(share: StageShare) -> str:
    """Where it came from, each with its bytes where there are several, and how fast if at all."""
    source = share.source or ""
    if len(share.came) > 1:
        source = ", ".join(f"{each.source} {amount(each.bytes)}" for each in share.came)
    rate = "" if share.bytes_per_s is None else f"{amount(round(share.bytes_per_s))}/s"
    return f"{source} {rate}".strip()


def _heading(report: ColdStartReport) -> Text:
    heading = Text("cold start of ") + Text(report.revision, style="bold")
    heading.append(f" from rung {report.from_rung.value}, request {report.request_id}")
    if report.clock_uncertainty_s:
        heading.append(f" (clocks agree to {milliseconds(report.clock_uncertainty_s)})")
    return heading


def comparison(before: ColdStartReport, after: ColdStartReport, canvas: Canvas) -> RenderableType:
    """Two requests side by side on one scale, and what each stage gained or lost."""
    table = Table.grid(
        Column(no_wrap=True, min_width=LABEL_WIDTH),
        Column(justify="right", no_wrap=True),
        Column(no_wrap=True, min_width=canvas.width),
        Column(justify="right", no_wrap=True),
        Column(no_wrap=True, min_width=canvas.width),
        Column(justify="right", no_wrap=True),
        padding=(0, 1),
    )
    table.add_row("", "ms", _title(before), "ms", _title(after), "change")
    scale = 1 / max(before.ttft_s, after.ttft_s, 1e-9)
    first, second = before.stage_seconds(), after.stage_seconds()
    for stage in Stage:
        if stage in first or stage in second:
            table.add_row(
                Text(f"  {stage.value}", style=STYLES[stage]),
                _number(first.get(stage)),
                _stage_bars(before, stage, scale, canvas),
                _number(second.get(stage)),
                _stage_bars(after, stage, scale, canvas),
                _change(first.get(stage, 0.0), second.get(stage, 0.0)),
            )
    _add_sum(table, UNATTRIBUTED, before.unattributed_s, after.unattributed_s, style="")
    _add_sum(table, TOTAL, before.ttft_s, after.ttft_s, style="bold")
    return Group(_verdict(before, after), table)


def _add_sum(table: Table, label: str, before: float, after: float, *, style: str) -> None:
    table.add_row(
        f"  {label}", _number(before), "", _number(after), "", _change(before, after), style=style
    )


def _title(report: ColdStartReport) -> Text:
    at = datetime.fromtimestamp(report.started_at, UTC).astimezone()
    return Text(f"{at:%H:%M:%S} from {report.from_rung.value}", style="bold")


def _verdict(before: ColdStartReport, after: ColdStartReport) -> Text:
    text = Text(f"cold starts of {after.model}: ")
    text.append(f"{milliseconds(before.ttft_s)}, then {milliseconds(after.ttft_s)}")
    if min(before.ttft_s, after.ttft_s) > 0:
        ratio = before.ttft_s / after.ttft_s
        word, factor = ("faster", ratio) if ratio >= 1 else ("slower", 1 / ratio)
        text.append(f", {factor:.1f} times {word}")
    return text


def _number(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.1f}"


def _change(before: float, after: float) -> str:
    difference = round((after - before) * 1000, 1)
    return f"{difference:+,.1f}" if difference else "0.0"


def _stage_bars(report: ColdStartReport, stage: Stage, scale: float, canvas: Canvas) -> Text:
    """Every interval of one stage on one line."""
    line = Text()
    for share in report.shares:
        if share.stage is stage:
            bar = canvas.bar(share.offset_s * scale, share.seconds * scale, STYLES[stage])
            line = _over(line, bar)
    return line


def _over(line: Text, bar: Text) -> Text:
    """Puts a bar behind what is drawn already; bars come in order of time."""
    indent = len(bar.plain) - len(bar.plain.lstrip(" "))
    start = max(indent, len(line.plain))
    return line + Text(" " * (start - len(line.plain))) + bar[indent:]
