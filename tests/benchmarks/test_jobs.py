from benchmarks.durable.accept import Accepts
from benchmarks.durable.kills import Verdict


def test_quantiles_are_of_what_was_measured() -> None:
    accepts = Accepts([0.001 * number for number in range(1, 101)], 1.0)
    assert [round(accepts.quantile(it), 3) for it in (0, 0.5, 0.99, 1)] == [
        *(0.001, 0.051, 0.1, 0.1)
    ]


def test_the_verdict_is_good_only_if_every_accepted_job_succeeded_once() -> None:
    good = Verdict(accepted={"a", "b"})
    good.states["succeeded"] = 2
    assert good.is_good
    assert not Verdict().is_good, "nothing was accepted"
    good.double_keys = 1
    assert not good.is_good
    lost = Verdict(accepted={"a", "b"}, lost=["b"])
    lost.states["succeeded"] = 1
    assert not lost.is_good
