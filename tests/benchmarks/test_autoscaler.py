"""What the autoscaler's benchmark replays, and that it finds what it looks for."""

import re

import pytest

from benchmarks.autoscaler import just_too_late, learnt_cost_s, show_ticks, show_verdicts
from benchmarks.measure.arrivals import Request, generated, idle_times, split
from benchmarks.measure.ticks import FleetShape, Ticks, measure_ticks


def test_idle_times_lie_between_the_end_of_everything_and_the_next_arrival() -> None:
    requests = [Request(0, 10), Request(2, 1), Request(15, 1), Request(15.5, 4), Request(30, 1)]
    assert idle_times(requests) == [5.0, 10.5]


def test_what_is_generated_is_the_same_every_time_and_of_every_kind() -> None:
    first, again = generated(days=0.5), generated(days=0.5)
    assert first == again != generated(days=0.5, seed=1)
    assert all(model for models in first.values() for model in models)


def test_a_split_loses_no_request() -> None:
    requests = [Request(float(at), 1.0) for at in range(100)]
    parts = split(requests, 7)
    assert sorted(request for part in parts for request in part) == requests


def test_what_is_learnt_costs_at_most_twice_the_clairvoyant() -> None:
    for models in generated(days=0.5).values():
        for model in map(idle_times, models):
            least = 60.0 + sum(min(idle_s, 60.0) for idle_s in model)
            assert learnt_cost_s(model, 60.0) <= 2 * least + 1e-6


def test_who_comes_just_after_the_grace_costs_more_than_anybody_and_less_than_twice() -> None:
    ratios = [
        learnt_cost_s(model, 22.7) / (22.7 + sum(min(idle_s, 22.7) for idle_s in model))
        for model in just_too_late(22.7, times=300)
    ]
    assert 1.9 < max(ratios) <= 2 + 1e-9


async def test_every_tick_since_a_take_over_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    shape = FleetShape(models=10, replicas=60, busy=0.5)
    assert (shape.asked, shape.each) == (5, 11)

    ticks = await measure_ticks(shape, take_over=70, steady=3, burst=100)

    assert [(len(it.seconds), 0 < it.held_s <= max(it.seconds)) for it in ticks.values()] == [
        (70, True),
        (3, True),
        (100, True),
    ]
    show_ticks(ticks, 10, 60)
    assert all(name in capsys.readouterr().out for name in list(ticks)[:1])


def test_of_a_hundred_ticks_the_slowest_is_left_out() -> None:
    ticks = Ticks([float(number) for number in range(100, 0, -1)])
    assert (ticks.quantile(0.5), ticks.quantile(0.99), ticks.quantile(1.0)) == (50, 99, 100)


@pytest.mark.parametrize(
    ("tick_s", "worst", "words"),
    [
        (0.05, 2.0, ["met", "met"]),
        (0.051, 1.9, ["NOT MET", "met"]),
        (0.01, 2.1, ["met", "NOT MET"]),
    ],
)
def test_each_target_has_its_verdict(
    tick_s: float, worst: float, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_verdicts({"busy": Ticks([0.001] * 98 + [tick_s, 0.9])}, worst) == (
        words == ["met", "met"]
    )
    assert re.findall(r"NOT MET|met", capsys.readouterr().out) == words
