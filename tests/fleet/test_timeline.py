import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.fleet.timeline import ColdRequest, attribute
from infra.contracts.base import ModelName, NodeId, ReplicaId, RequestId, RevisionName
from infra.contracts.stage import Came, ColdStartReport, Moved, Rung, Stage, StagePart, StageTiming

EPOCH = 1_700_000_000.0


def a_request(arrived_at: float = EPOCH, ttft_s: float = 10.0) -> ColdRequest:
    return ColdRequest(
        request_id=RequestId("r1"),
        model=ModelName("chat"),
        revision=RevisionName("chat@1"),
        replica_id=ReplicaId("chat-1-a"),
        node_id=NodeId("n1"),
        from_rung=Rung.RUNTIME,
        arrived_at=arrived_at,
        ttft_s=ttft_s,
    )


def timing(stage: Stage, offset_s: float, seconds: float) -> StageTiming:
    return StageTiming(stage=stage, started_at=EPOCH + offset_s, seconds=seconds)


def explained(report: ColdStartReport) -> list[tuple[Stage, float, float]]:
    return [(it.stage, it.offset_s, it.seconds) for it in report.shares]


def assert_conserved(report: ColdStartReport) -> None:
    total = math.fsum(share.seconds for share in report.shares) + report.unattributed_s
    assert total == pytest.approx(report.ttft_s, rel=1e-12, abs=1e-9)
    assert report.unattributed_s >= 0


def test_a_whole_climb_adds_up():
    report = attribute(
        a_request(),
        [
            timing(Stage.QUEUE, 0, 1),
            timing(Stage.PROVISION, 1, 2),
            timing(Stage.RUNTIME, 3, 1),
            timing(Stage.WEIGHTS, 4, 3),
            timing(Stage.ENGINE, 7, 1),
            timing(Stage.PREFILL, 8, 2),
        ],
    ).report()
    assert report.unattributed_s == 0
    assert list(report.stage_seconds().values()) == [1, 2, 1, 3, 1, 2]
    assert_conserved(report)


def test_a_request_that_came_late_is_charged_only_its_part():
    report = attribute(
        a_request(ttft_s=2),
        [timing(Stage.RUNTIME, -5, 4), timing(Stage.WEIGHTS, -1, 2), timing(Stage.ENGINE, 1, 9)],
    ).report()
    assert explained(report) == [(Stage.WEIGHTS, 0, 1), (Stage.ENGINE, 1, 1)]
    assert_conserved(report)


def test_parts_are_told_of_stages_that_fall_into_the_wait_as_a_whole():
    parts = (StagePart(name="files", seconds=1), StagePart(name="map", seconds=2))
    weights = timing(Stage.WEIGHTS, 0, 3).model_copy(update={"parts": parts})
    assert [share.parts for share in attribute(a_request(), [weights]).report().shares] == [parts]
    late = a_request(arrived_at=EPOCH + 1)
    assert [share.parts for share in attribute(late, [weights]).report().shares] == [()]


@pytest.mark.parametrize(
    ("source", "rate"),
    [("s3", 500.0), ("hub", 500.0), ("mmap", None), ("cache", None), ("a" * 65, 500.0)],
)
def test_bytes_that_moved_have_a_rate_over_the_whole_stage(source: str, rate: float | None):
    moved = timing(Stage.WEIGHTS, -1, 4).model_copy(update={"bytes": 2000, "source": source})
    (share,) = attribute(a_request(), [moved]).report().shares
    assert (share.seconds, share.bytes, share.bytes_per_s) == (3, 2000, rate)


def test_bytes_that_came_beside_other_stages_are_told_and_take_no_time():
    came = (Came(source="origin", bytes=600), Came(source="cache", bytes=300))
    image = timing(Stage.IMAGE, 1, 0).model_copy(
        update={"bytes": 900, "source": "origin+cache", "moved": Moved(came=came, seconds=2)}
    )
    climb = [timing(Stage.PROVISION, 0, 1), image, timing(Stage.RUNTIME, 1, 9)]

    report = attribute(a_request(), climb).report()

    assert explained(report) == [
        (Stage.PROVISION, 0, 1),
        (Stage.IMAGE, 1, 0),
        (Stage.RUNTIME, 1, 9),
    ]
    share = report.shares[1]
    assert (share.bytes, share.came, share.bytes_per_s) == (900, came, 300)
    assert_conserved(report)
    late = attribute(a_request(arrived_at=EPOCH + 2), climb).report()
    assert Stage.IMAGE not in late.stage_seconds()


def test_gaps_are_unattributed():
    report = attribute(
        a_request(), [timing(Stage.RUNTIME, 1, 2), timing(Stage.WEIGHTS, 4, 5)]
    ).report()
    assert report.unattributed_s == pytest.approx(3)


def test_an_instant_goes_to_the_stage_that_the_others_waited_for():
    report = attribute(
        a_request(),
        [timing(Stage.QUEUE, 0, 10), timing(Stage.WEIGHTS, 2, 5), timing(Stage.RUNTIME, 1, 3)],
    ).report()
    assert explained(report) == [
        (Stage.QUEUE, 0, 1),
        (Stage.RUNTIME, 1, 3),
        (Stage.WEIGHTS, 4, 3),
        (Stage.QUEUE, 7, 3),
    ]
    assert_conserved(report)


def test_nothing_measured_is_all_unattributed():
    report = attribute(a_request(ttft_s=3), []).report()
    assert (report.shares, report.unattributed_s) == ((), 3)


@given(
    ttft_s=st.floats(0, 1e5),
    timings=st.lists(
        st.builds(timing, st.sampled_from(Stage), st.floats(-1e5, 1e5), st.floats(0, 1e5)),
        max_size=20,
    ),
)
def test_time_is_conserved_whatever_was_measured(ttft_s: float, timings: Sequence[StageTiming]):
    report = attribute(a_request(ttft_s=ttft_s), timings).report()
    assert_conserved(report)
    ends = [(share.offset_s, share.offset_s + share.seconds) for share in report.shares]
    assert all(0 <= begin <= end <= ttft_s + 1e-6 for begin, end in ends)
    assert all(before[1] <= after[0] + 1e-6 for before, after in itertools.pairwise(ends))
