import pytest

from control_plane.activator.cold_start import ReplicaTiming
from infra.contracts.stage import StagePart


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
