import pytest

from control_plane.autoscaler.backlog import service_time_s, wanted_concurrency
from control_plane.autoscaler.demand import Demand
from control_plane.autoscaler.window import Load


def present(waiting: int, in_flight: int = 0) -> Demand:
    return Demand(in_flight, waiting, last_active_at=0.0, request_seconds=0.0)


def a_load(
    concurrency: float = 1.0,
    arrivals_per_s: float = 0.0,
    executing_s: float = 0.0,
    executed: int = 0,
) -> Load:
    return Load(concurrency, arrivals_per_s, executing_s, executed)


def test_what_piled_up_during_a_climb_is_worth_what_one_more_climb_can_serve():
    load = a_load(30.0, arrivals_per_s=1.0)  # a minute of one a second, half a second each
    assert wanted_concurrency(load, present(60), service_s=0.5, cold_start_s=60) == 0.5 + 0.5


def test_what_piled_up_and_is_served_all_at_once_is_no_larger_stream():
    load = a_load(20.0, arrivals_per_s=1.0)
    assert wanted_concurrency(load, present(0, 32), service_s=0.5, cold_start_s=60) == 0.5


def test_a_burst_of_long_requests_counts_each_of_them_once():
    load = a_load(20.0, arrivals_per_s=20 / 60)
    assert wanted_concurrency(load, present(0, 20), service_s=600, cold_start_s=6) == 20
    assert wanted_concurrency(None, present(10), service_s=600.0, cold_start_s=6) == 10


def test_a_stream_that_is_too_much_for_what_runs_is_counted_by_its_arrivals():
    load = a_load(500.0, arrivals_per_s=100.0)
    assert wanted_concurrency(load, present(450, 50), service_s=0.5, cold_start_s=90) == 52.5


def test_without_a_cold_start_nothing_piles_up():
    assert wanted_concurrency(None, present(7, 1), service_s=1.0, cold_start_s=0.0) == 1


@pytest.mark.parametrize(
    ("load", "in_flight", "known_s", "expected_s"),
    [
        (None, 5, 2.0, 2.0),
        (a_load(executing_s=30.0, executed=60), 5, 2.0, 0.5),
        (a_load(executing_s=0.0), 0, 2.0, 2.0),
        (a_load(executing_s=100.0), 10, 2.0, 10.0),  # none is finished yet
        (a_load(executing_s=10.0), 10, 2.0, 2.0),
    ],
)
def test_how_long_a_request_takes(
    load: Load | None, in_flight: int, known_s: float, expected_s: float
):
    assert service_time_s(load, present(0, in_flight), known_s=known_s) == expected_s
