import math

import pytest

from control_plane.autoscaler.demand import Demand, DemandMeter, IdleTime
from control_plane.autoscaler.demand_table import DemandTable
from control_plane.autoscaler.window import Window
from infra.contracts.base import RevisionName
from infra.virtual_time import EPOCH, LoopClock, run_virtual


def a_window(*readings: tuple[float, float]) -> Window:
    window = Window(60)
    for at, total in readings:
        window.record(a_reading(total), now=at)
    return window


def a_reading(total: float) -> Demand:
    return Demand(0, 0, None, request_seconds=total)


def mean(window: Window, span_s: float, *, now: float) -> float | None:
    load = window.load(span_s, now=now)
    return None if load is None else load.concurrency


def test_the_mean_is_exact_between_two_readings():
    window = a_window((0, 0), (10, 25))
    assert mean(window, 60, now=10) == 2.5


def test_one_reading_has_no_mean():
    assert mean(a_window((0, 0)), 60, now=0) is None


def test_a_short_span_looks_only_at_its_end():
    window = a_window(*((t, 0.0) for t in range(55)), (60, 60))
    assert mean(window, 6, now=60) == 10
    assert mean(window, 60, now=60) == 1


def test_the_partial_window_counts_early():
    assert mean(a_window((100, 5), (101, 505)), 60, now=101) == 500


def test_readings_older_than_the_span_are_forgotten():
    window = a_window(*((float(t), t * 1.0) for t in range(10_000)))
    assert len(window._readings) <= 62
    assert mean(window, 60, now=9999) == 1


def test_a_thousand_pokes_in_one_instant_take_no_memory():
    window = a_window((0, 0), *((1 + i / 1e6, i) for i in range(1000)))
    assert len(window._readings) <= 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_reading(bad: float):
    assert mean(a_window((0, 0), (1, bad), (2, 4)), 60, now=2) == 2


def test_a_total_that_fell_or_a_clock_that_stepped_back_starts_anew():
    assert mean(a_window((0, 100), (1, 200), (2, 0), (3, 1)), 60, now=3) == 1
    assert mean(a_window((1000, 100), (1001, 200), (10, 200), (11, 201)), 60, now=11) == 1


def test_a_restart_forgets_the_sleep():
    window = a_window((0, 0), (50, 0))
    window.restart(a_reading(0), now=60)
    window.record(a_reading(500), now=61)
    assert mean(window, 60, now=61) == 500


def test_a_meter_counts_every_way_a_request_can_go():
    meter = DemandMeter()
    meter.arrive(now=0)
    meter.arrive(now=0)
    meter.dispatch(now=2)
    meter.retry(now=3)
    meter.dispatch(now=4)
    meter.leave(was_in_flight=True, now=5)
    meter.leave(was_in_flight=False, now=6)
    assert meter.read(now=10) == Demand(
        0,
        0,
        last_active_at=6,
        request_seconds=11,
        executing_seconds=2,
        arrivals=2,
        executed=1,
    )


def test_a_meter_remembers_the_last_idle_time_that_was_no_mere_moment():
    meter = DemandMeter()
    for arrives_at, leaves_at in ((0, 5), (5.5, 6), (20, 21), (21.9, 22)):
        meter.arrive(now=arrives_at)
        meter.leave(was_in_flight=False, now=leaves_at)
    assert meter.read(now=100).idled == IdleTime(6, 20)


def test_the_load_of_a_window_tells_the_stream_apart_from_the_stock():
    meter, window = DemandMeter(), Window(60)
    window.record(meter.read(now=0), now=0)
    for second in range(10):
        meter.arrive(now=second)
        if second >= 5:
            meter.dispatch(now=second)
            meter.leave(was_in_flight=True, now=second + 0.5)
    window.record(meter.read(now=10), now=10)
    load = window.load(60, now=10)
    assert load is not None
    assert load.arrivals_per_s == 1 and load.executing_s == 2.5 and load.executed == 5
    assert load.concurrency == pytest.approx((10 + 9 + 8 + 7 + 6 + 5 * 0.5) / 10)


def test_a_request_that_leaves_twice_is_a_bug_of_ours():
    meter = DemandMeter()
    meter.arrive(now=0)
    meter.leave(was_in_flight=False, now=1)
    meter.leave(was_in_flight=False, now=2)
    with pytest.raises(AssertionError):
        meter.read(now=3)


def test_a_table_reads_every_meter_at_the_clocks_time():
    async def main() -> None:
        table, chat = DemandTable(LoopClock()), RevisionName("chat@1")
        table.meter(chat).arrive(now=EPOCH)
        assert table.demand(chat) == Demand(0, 1, EPOCH, 0, arrivals=1)
        assert table.demand(RevisionName("other@1")) == Demand(0, 0, None, 0)
        table.forget(chat)
        assert table.demand(chat) == Demand(0, 0, None, 0)

    run_virtual(main())
