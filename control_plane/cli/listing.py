"""`platform ls`: what is deployed, and where it stands."""

from collections.abc import Sequence

from rich.text import Text

from control_plane.cli.imaging import describe_image, is_worth_a_line
from control_plane.cli.releases import split_text
from control_plane.cli.session import printable
from control_plane.cli.table import table
from control_plane.cli.units import duration
from infra.contracts.revision import ModelState, ModelStatus, ReplicaState

STATE_STYLES = {
    ModelState.IDLE: "bright_black",
    ModelState.STARTING: "yellow",
    ModelState.READY: "green",
    ModelState.DRAINING: "yellow",
    ModelState.FAILING: "red",
}
HEADINGS = ("NAME", "STATE", "REVISION", "REPLICAS", "RUNNING", "WAITING", "AGE", "REASON")
NUMBERS = frozenset({"REPLICAS", "RUNNING", "WAITING", "AGE"})


def listing(models: Sequence[ModelStatus], *, unix_now: float) -> list[Text]:
    """One line a model, and what is to be said of images: whose index is made, or cannot be."""
    lines = table(HEADINGS, (_row(model, unix_now) for model in models), numbers=NUMBERS)
    said = [
        Text(f"{model.revision} runs {describe_image(model.image)}")
        for model in models
        if model.image is not None and is_worth_a_line(model.image)
    ]
    return [*lines, Text(), *said] if said else lines


def _row(model: ModelStatus, unix_now: float) -> list[Text]:
    ready = sum(replica.state is ReplicaState.READY for replica in model.replicas)
    return [
        Text(model.name),
        Text(model.state.value, style=STATE_STYLES[model.state]),
        Text(split_text(model.traffic)),
        Text(f"{ready}/{model.desired_replicas}"),
        Text(str(model.in_flight)),
        Text(str(model.waiting)),
        Text(duration(unix_now - model.created_at)),
        Text(printable(model.reason)),
    ]
