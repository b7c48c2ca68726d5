"""What `platform explain` prints."""

from control_plane.cli.explaining import explanation
from infra.contracts.explanation import (
    DecisionInputs,
    DecisionStatus,
    KeepAliveStatus,
    ModelExplanation,
)
from infra.contracts.revision import ModelState

INPUTS = DecisionInputs(
    desired=0,
    ready=0,
    loading=0,
    in_flight=0,
    waiting=1,
    stable_mean=None,
    panic_mean=None,
    idle_s=None,
    grace_s=61.3,
    scheduled=0,
    is_in_panic=False,
    is_contended=False,
    is_superseded=False,
)


def an_explanation(
    *decisions: DecisionStatus, is_automatic: bool = True, hint: str | None = None
) -> ModelExplanation:
    return ModelExplanation(
        name="chat",
        revision="chat@1",
        state=ModelState.READY,
        reason="1 replica ready, idle, stops in 7 s",
        hint=hint,
        desired_replicas=1,
        keep_alive=KeepAliveStatus(
            grace_s=61.3,
            is_automatic=is_automatic,
            cold_start_s=1.3,
            cold_penalty_s=60,
            idle_times=4,
            saved_s=12,
        ),
        decisions=decisions,
    )


def test_a_line_on_the_model_one_on_its_grace_and_the_decisions() -> None:
    decision = DecisionStatus(
        at=1_700_000_000, revision="chat@1", replicas=1, reason="1 waiting\x1b[2J", inputs=INPUTS
    )
    lines = [line.plain for line in explanation(an_explanation(decision))]
    assert lines[:4] == [
        "chat is ready: 1 replica ready, idle, stops in 7 s",
        "an idle replica is kept for 61 s: a cold start takes 1.3 s and is worth 60 s more, "
        "4 idle times were learnt from",
        "",
        "TIME                 REVISION  REPLICAS  REASON",
    ]
    assert lines[4].split()[2:6] == ["chat@1", "0", "->", "1"]
    assert "\x1b" not in lines[4]


def test_a_grace_that_was_given_is_said_to_be_and_no_decision_is_no_table() -> None:
    lines = [line.plain for line in explanation(an_explanation(is_automatic=False))]
    assert lines[1:] == ["an idle replica is kept for 61 s, as scaling.grace says"]


def test_what_can_be_done_is_said_after_what_is_wrong() -> None:
    lines = [line.plain for line in explanation(an_explanation(hint="look at\x1b[2J the source"))]
    assert lines[0] == "chat is ready: 1 replica ready, idle, stops in 7 s"
    assert lines[1].startswith("hint: look at") and "\x1b" not in lines[1]
