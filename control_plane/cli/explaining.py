"""`platform explain`: why a model is where it is, and the last decisions about it."""

from datetime import UTC, datetime

from rich.text import Text

from control_plane.cli.imaging import describe_image
from control_plane.cli.session import printable
from control_plane.cli.table import table
from control_plane.cli.units import duration
from infra.contracts.explanation import DecisionStatus, KeepAliveStatus, ModelExplanation
from infra.contracts.revision import ModelState

HEADINGS = ("TIME", "REVISION", "REPLICAS", "REASON")


def explanation(found: ModelExplanation) -> list[Text]:
    """Where the model is and what can be done, its grace, and its decisions, newest first."""
    lines = [Text(printable(f"{found.name} is {found.state.value}: {found.reason}"))]
    hint = found.hint
    if hint is None and found.state is ModelState.FAILING:
        hint = f"platform logs {found.name}"
    if hint is not None:
        lines.append(Text(printable(f"hint: {hint}")))
    if found.image is not None:
        lines.append(Text(f"it runs {describe_image(found.image)}"))
    lines.append(Text(_kept(found.keep_alive)))
    if found.decisions:
        rows = [_row(decision) for decision in found.decisions]
        lines += [Text(""), *table(HEADINGS, rows, numbers={"REPLICAS"})]
    return lines


def _kept(keep_alive: KeepAliveStatus) -> str:
    kept = f"an idle replica is kept for {duration(keep_alive.grace_s)}"
    if not keep_alive.is_automatic:
        return f"{kept}, as scaling.grace says"
    return (
        f"{kept}: a cold start takes {duration(keep_alive.cold_start_s)} and is worth "
        f"{duration(keep_alive.cold_penalty_s)} more, "
        f"{keep_alive.idle_times} idle times were learnt from"
    )


def _row(decision: DecisionStatus) -> list[Text]:
    at = datetime.fromtimestamp(decision.at, UTC).astimezone()
    return [
        Text(f"{at:%Y-%m-%d %H:%M:%S}"),
        Text(decision.revision),
        Text(f"{decision.inputs.desired} -> {decision.replicas}"),
        Text(printable(decision.reason)),
    ]
