"""Why a model is where it is: the last decisions about its replicas, and what was learnt of it."""

from pydantic import Field

from infra.contracts.base import Contract, ModelName, RevisionName
from infra.contracts.image import ImageStatus
from infra.contracts.revision import ModelState


class DecisionInputs(Contract):
    """What a decision looked at; None where it was not known."""

    desired: int = Field(description="Replicas wanted before it.")
    ready: int
    loading: int
    in_flight: int | None
    waiting: int | None
    stable_mean: float | None = Field(description="Requests at once, sized for the last minute.")
    panic_mean: float | None = Field(description="The same for the last seconds.")
    idle_s: float | None
    grace_s: float
    scheduled: int = Field(description="Replicas that the schedule kept.")
    warm: int = Field(
        default=0, description="Replicas that somebody wants to have before a switch."
    )
    is_in_panic: bool
    is_contended: bool = Field(description="Others waited for the room it idled in.")
    is_superseded: bool = Field(description="Requests went to another revision.")


class DecisionStatus(Contract):
    """A decision that changed how many replicas are wanted."""

    at: float
    revision: RevisionName
    replicas: int
    reason: str
    inputs: DecisionInputs


class KeepAliveStatus(Contract):
    """How long an idle replica is kept, and what that is computed from; in seconds."""

    grace_s: float
    is_automatic: bool
    cold_start_s: float = Field(description="Machine time of a typical cold start, as measured.")
    cold_penalty_s: float
    idle_times: int = Field(description="How many idle times it learnt from.")
    saved_s: float = Field(description="Twice the clairvoyant's cost less ours so far; never < 0.")


class ModelExplanation(Contract):
    """`GET /v1/models/{name}/explain`."""

    name: ModelName
    revision: RevisionName
    state: ModelState
    reason: str = Field(description="Why it is where it is, in a line.")
    hint: str | None = Field(default=None, description="What to do where its replicas failed.")
    desired_replicas: int
    image: ImageStatus | None = Field(
        default=None, description="What its containers run, where that is pinned."
    )
    keep_alive: KeepAliveStatus
    decisions: tuple[DecisionStatus, ...] = Field(description="The last ones, newest first.")
