"""The benchmark of standby machines: who waits and what it costs, on a few requests."""

from pathlib import Path

import pytest

from benchmarks.capacity import (
    KINDS,
    POLICIES,
    RUNNING_USD,
    STOPPED_USD,
    cases_of,
    cases_of_traces,
    show,
    usd_a_day,
)
from benchmarks.measure.arrivals import MODELS, Request, generated
from benchmarks.measure.standby_machines import Account, Policy, serve
from control_plane.capacity.simulated.cloud import CloudTemper, SimulatedCloud
from infra.errors import NoCapacity, Throttled
from infra.virtual_time import run_virtual

EXACT = CloudTemper(spread=0.0, no_capacity=0.0, not_started=0.0, throttled=0.0)
TRACES = Path(__file__).parents[1] / "autoscaler" / "traces"
ALONE = [Request(at, 1.0) for at in (100.0, 2000.0, 4000.0)]  # each finds no machine


def account(policy: Policy, temper: CloudTemper = EXACT) -> Account:
    return run_virtual(serve([ALONE], policy, temper=temper))


def test_without_standby_a_request_waits_for_a_launch_and_pays_for_nothing_else() -> None:
    it = account(Policy("none"))

    assert it.waits_s == pytest.approx([25.8] * 3, abs=0.1)
    assert it.stopped_s == 0
    of_each = 25.8 + 11 + 300  # boot, service with its grace, idle; the last one is cut short
    assert it.running_s == pytest.approx(2 * of_each + 27, rel=0.05)


def test_a_stopped_machine_makes_the_wait_that_of_a_start() -> None:
    it = account(Policy("one stopped", stopped=1))

    assert it.waits_s == pytest.approx([10.0] * 3, abs=0.1)
    assert it.stopped_s > 0.9 * it.seconds - 4 * 60


def test_a_machine_that_stays_makes_only_the_first_request_wait() -> None:
    it = account(Policy("always on", idle_s=1e9))

    assert it.waits_s == pytest.approx([25.8, 0.0, 0.0], abs=0.1)
    assert (it.waited, it.quantile(0.5), it.quantile(0.99)) == pytest.approx((1 / 3, 0, 25.8), 0.01)


def test_a_machine_idles_on_where_a_models_penalty_pays_for_all_of_its_time() -> None:
    it = account(Policy("decider", most=1, cold_penalty=86_400))

    assert it.waits_s == pytest.approx([25.8, 0.0, 0.0], abs=0.1)
    assert it.stopped_s == 0


def test_a_cloud_that_refuses_is_asked_again_until_every_request_is_served() -> None:
    it = account(Policy("one stopped", stopped=1), CloudTemper(no_capacity=0.5, not_started=0.5))

    assert len(it.waits_s) == 3


def test_the_draws_of_a_cloud_have_the_measured_means_and_are_the_same_for_a_seed() -> None:
    def draws(seed: int) -> list[float]:
        cloud = SimulatedCloud(CloudTemper(no_capacity=0.0, throttled=0.0), seed=seed)
        return [cloud.launch() for _ in range(4000)]

    assert sum(draws(1)) / 4000 == pytest.approx(25.8, abs=0.3)
    assert draws(1) == draws(1) != draws(2)


def test_a_cloud_refuses_as_often_as_its_temper_says() -> None:
    cloud = SimulatedCloud(CloudTemper(no_capacity=0.1, throttled=0.05), seed=0)
    refusals = {NoCapacity: 0, Throttled: 0}
    for _ in range(4000):
        try:
            cloud.launch()
        except (NoCapacity, Throttled) as error:
            refusals[type(error)] += 1

    assert refusals[Throttled] == pytest.approx(200, abs=50)
    assert refusals[NoCapacity] == pytest.approx(380, abs=70)


def test_every_policy_gets_the_same_arrivals_and_every_seed_others() -> None:
    cases = cases_of(("sparse",), 0.5, seeds=2)

    assert len(cases) == 2 * len(POLICIES)
    for case in cases:
        assert case.models == generated(0.5, seed=case.seed)["sparse"]
    assert cases[0].models != cases[1].models


def test_a_trace_is_shared_out_among_the_models() -> None:
    cases = cases_of_traces(TRACES, seeds=1)

    assert {len(case.models) for case in cases} == {MODELS}
    assert {sum(map(len, case.models)) for case in cases} == {1500, 1200}


def test_the_table_has_the_range_over_the_seeds_and_says_what_is_assumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    none = [Account([0.0, wait], seconds=86400, running_s=3600) for wait in (20.0, 30.0)]
    one = [Account([0.0, 10.0], seconds=86400, running_s=7200)] * 2

    show({KINDS[0]: {"none": none, "one stopped": one}}, days=1, seeds=2)

    said = " ".join(capsys.readouterr().out.split())
    assert "20.0…30.0" in said and "+0.80" in said
    for assumed in ("sigma 0.3", "2% of launches", "1% of calls", "10 s for a start", "0.8048 USD"):
        assert assumed in said


def test_a_day_costs_what_ran_and_what_was_stopped() -> None:
    day = Account(seconds=2 * 86400, running_s=10 * 3600, stopped_s=48 * 3600)

    assert usd_a_day(day) == pytest.approx((10 * RUNNING_USD + 48 * STOPPED_USD) / 2)
