"""`platform ls`: what is deployed, and where it stands."""

from rich.table import Column, Table

from control_plane.cli.session import printable
from control_plane.cli.units import duration
from infra.contracts.revision import ModelState, ModelStatus, ReplicaState

STATE_STYLES = {
    ModelState.IDLE: "bright_black",
    ModelState.STARTING: "yellow",
    ModelState.READY: "green",
    ModelState.DRAINING: "yellow",
    ModelState.FAILING: "red",
}


def listing(models: list[ModelStatus], *, unix_now: float) -> Table:
    """One line a model."""
    table = Table(
        Column("NAME", no_wrap=True),
        Column("STATE", no_wrap=True),
        Column("REVISION", no_wrap=True),
        Column("REPLICAS", justify="right", no_wrap=True),
        Column("RUNNING", justify="right", no_wrap=True),
        Column("WAITING", justify="right", no_wrap=True),
        Column("AGE", justify="right", no_wrap=True),
        Column("REASON"),
        box=None,
        pad_edge=False,
        header_style="",
    )
    for model in models:
        style = STATE_STYLES[model.state]
        ready = sum(replica.state is ReplicaState.READY for replica in model.replicas)
        table.add_row(
            model.name,
            f"[{style}]{model.state.value}[/]",
            model.revision,
            f"{ready}/{model.desired_replicas}",
            str(model.in_flight),
            str(model.waiting),
            duration(unix_now - model.created_at),
            printable(model.reason).replace("[", r"\["),
        )
    return table
