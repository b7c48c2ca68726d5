import pytest

from control_plane.activator.call import Call, TokenCount
from control_plane.activator.cold_start import ReplicaTiming, Try, explain
from control_plane.fleet.node import Node
from control_plane.fleet.replica import Replica
from control_plane.fleet.state import Fleet
from infra.contracts.base import ReplicaId, RequestId
from infra.contracts.node import ReplicaReport
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung, Stage, StagePart, StageTiming
from infra.contracts.tenancy import TenantName
from tests.fleet.makers import N1, a_registration, a_revision


def test_a_replicas_timing_becomes_the_parts_of_prefill() -> None:
    timing = ReplicaTiming.read(b"prefill;dur=250.00, tokenise;dur=50.5, decode;dur=20")
    assert timing == ReplicaTiming(prefill=0.25, tokenise=0.0505, decode=0.02)
    tokenise, compute = timing.parts()
    assert tokenise == StagePart(name="tokenise", seconds=0.0505)
    assert (compute.name, compute.seconds) == ("compute", pytest.approx(0.1995))


@pytest.mark.parametrize(
    "header", [b"", b"decode", b"prefill;dur=x", b"tokenise;dur=5", b"cache;dur=1, total;dur=3"]
)
def test_a_header_without_prefill_tells_of_no_parts(header: bytes) -> None:
    assert ReplicaTiming.read(header).parts() == ()


def test_the_way_of_the_news_that_a_replica_is_ready_is_queueing_at_its_node() -> None:
    """However long the agent, its report or we take: no part of the wait is unexplained."""
    fleet, revision = Fleet(), a_revision()
    fleet.join(Node.registered(a_registration("n1"), version=1, lease_s=10, now=0))
    replica_id = ReplicaId("r1")
    fleet.assign(
        Replica(
            replica_id=replica_id,
            revision=revision,
            node_id=N1,
            token="t",
            wanted_at=100.0,
            created_at=100.0,
            since=100.0,
            progressed_at=100.0,
        )
    )
    stages = (
        StageTiming(stage=Stage.RUNTIME, started_at=100.1, seconds=0.4),
        StageTiming(stage=Stage.ENGINE, started_at=100.5, seconds=1.5),
    )
    report = ReplicaReport(
        replica_id=replica_id,
        revision=revision.name,
        state=ReplicaState.READY,
        from_rung=Rung.RUNTIME,
        host="127.0.0.1",
        port=1,
        stages=stages,
    )
    fleet.hear(N1, report, now=102.3)  # 0.3 s after it was
    [endpoint] = fleet.ready(revision.name)
    call = Call(
        RequestId("req_1"),
        "/invoke",
        b"{}",
        is_streaming=False,
        wants_progress=False,
        arrived_at=99.9,
        tenant=TenantName("acme"),
        tokens=TokenCount(),
    )

    account = explain(call, revision, [Try(endpoint, 102.4, 103.0)], fleet)

    shares = [(it.stage, it.source, round(it.seconds, 6)) for it in account.report().shares]
    assert shares == [
        (Stage.QUEUE, "activator", 0.1),
        (Stage.PROVISION, "node", 0.1),
        (Stage.RUNTIME, None, 0.4),
        (Stage.ENGINE, None, 1.5),
        (Stage.QUEUE, "node", 0.3),
        (Stage.QUEUE, "activator", 0.1),
        (Stage.PREFILL, "r1", 0.6),
    ]
    assert account.unattributed_s == pytest.approx(0, abs=1e-9)
