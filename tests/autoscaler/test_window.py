import math
import random

import pytest

from control_plane.autoscaler.demand import Demand, DemandMeter, IdleTime
from control_plane.autoscaler.demand_table import DemandTable
from control_plane.autoscaler.window import Load, Windows
from infra.contracts.base import RevisionName
from infra.virtual_time import EPOCH, LoopClock, run_virtual


def a_window(*readings: tuple[float, float]) -> Windows:
    window = Windows(60, 6)
    for at, total in readings:
        window.record(a_reading(total), now=at)
    return window


def a_reading(total: float) -> Demand:
    return Demand(0, 0, None, request_seconds=total)


def facts_of(demand: Demand | None) -> tuple[object, ...]:
    assert demand is not None
    return (
        *(demand.in_flight, demand.waiting, demand.last_active_at, demand.request_seconds),
        *(demand.executing_seconds, demand.arrivals, demand.executed, demand.idled),
    )


def mean(window: Windows, *, now: float) -> float | None:
    load = window.long(now=now)
    return None if load is None else load.concurrency


def load(window: Windows, *, now: float) -> tuple[float, ...]:
    return figures_of(window.long(now=now))


def recent(window: Windows, *, now: float) -> tuple[float, ...]:
    return figures_of(window.short(now=now))


def figures_of(it: Load | None) -> tuple[float, ...]:
    return () if it is None else (it.concurrency, it.arrivals_per_s, it.executing_s, it.executed)


def recent_mean(window: Windows, *, now: float) -> float | None:
    load = window.short(now=now)
    return None if load is None else load.concurrency


def test_the_mean_is_exact_between_two_readings():
    window = a_window((0, 0), (10, 25))
    assert mean(window, now=10) == 2.5


def test_one_reading_has_no_mean():
    assert mean(a_window((0, 0)), now=0) is None


def test_a_short_span_looks_only_at_its_end():
    readings = (*((float(t), 0.0) for t in range(55)), (60.0, 60.0))
    assert recent_mean(a_window(*readings), now=60) == 10
    assert mean(a_window(*readings), now=60) == 1


def test_a_span_that_begins_between_two_readings_has_its_part_of_what_lies_between():
    assert mean(a_window((0, 0), (10, 40), (60, 40), (65, 40)), now=65) == 20 / 60
    assert recent_mean(a_window((0, 0), (10, 40), (60, 40), (65, 45)), now=65) == 5 / 6


def test_where_nobody_looked_because_nothing_happened_readings_are_as_if_somebody_had():
    seen, unseen, meter = Windows(60, 6), Windows(60, 6), DemandMeter()
    meter.arrive(now=0)
    meter.arrive(now=0)
    meter.dispatch(now=0)
    for second in range(101):
        seen.record(meter.read(now=second), now=second)
        if second == 0:
            unseen.record(meter.read(now=second), now=second)
    meter.leave(was_in_flight=True, now=100.75)
    for second in range(101, 170):
        seen.record(meter.read(now=second), now=second)
        unseen.record(meter.read(now=second), now=second, quiet_until=second - 1)
        assert load(unseen, now=second) == pytest.approx(load(seen, now=second), abs=1e-9)
        assert recent(unseen, now=second) == pytest.approx(recent(seen, now=second), abs=1e-9)


def test_the_partial_window_counts_early():
    assert mean(a_window((100, 5), (101, 505)), now=101) == 500


def test_readings_older_than_the_span_are_forgotten():
    window = Windows(60, 6)
    for t in range(10_000):
        window.record(a_reading(float(t)), now=t)
        window.long(now=t)
    assert len(window) <= 130
    assert mean(window, now=9999) == 1


def test_a_thousand_pokes_in_one_instant_take_no_memory():
    window = a_window((0, 0), *((1 + i / 1e6, i) for i in range(1000)))
    assert len(window) <= 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_reading(bad: float):
    assert mean(a_window((0, 0), (1, bad), (2, 4)), now=2) == 2


def test_a_reading_that_comes_a_moment_late_is_left_out():
    assert mean(a_window((0, 0), (10, 40), (20, 80), (19.9, 79.6)), now=20) == 4


def test_a_total_that_fell_or_a_clock_that_stepped_back_starts_anew():
    assert mean(a_window((0, 100), (1, 200), (2, 0), (3, 1)), now=3) == 1
    assert mean(a_window((1000, 100), (1001, 200), (10, 200), (11, 201)), now=11) == 1


def test_a_restart_forgets_the_sleep():
    window = a_window((0, 0), (50, 0))
    window.restart(a_reading(0), now=60)
    window.record(a_reading(500), now=61)
    assert mean(window, now=61) == 500


def test_a_meter_counts_every_way_a_request_can_go():
    meter = DemandMeter()
    meter.arrive(now=0)
    meter.arrive(now=0)
    meter.dispatch(now=2)
    meter.retry(now=3)
    meter.dispatch(now=4)
    meter.leave(was_in_flight=True, now=5)
    meter.leave(was_in_flight=False, now=6)
    assert facts_of(meter.read(now=10)) == (0, 0, 6, 11, 2, 2, 1, None)


def test_a_meter_remembers_the_last_idle_time_that_was_no_mere_moment():
    meter = DemandMeter()
    for arrives_at, leaves_at in ((0, 5), (5.5, 6), (20, 21), (21.9, 22)):
        meter.arrive(now=arrives_at)
        meter.leave(was_in_flight=False, now=leaves_at)
    assert meter.read(now=100).idled == IdleTime(6, 20)


def test_the_load_of_a_window_tells_the_stream_apart_from_the_stock():
    meter, window = DemandMeter(), Windows(60, 6)
    window.record(meter.read(now=0), now=0)
    for second in range(10):
        meter.arrive(now=second)
        if second >= 5:
            meter.dispatch(now=second)
            meter.leave(was_in_flight=True, now=second + 0.5)
    window.record(meter.read(now=10), now=10)
    load = window.long(now=10)
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
        nothing = facts_of(Demand(0, 0, None, 0))
        table.meter(chat).arrive(now=EPOCH)
        assert facts_of(table.demand(chat)) == (0, 1, EPOCH, 0, 0, 1, 0, None)
        assert facts_of(table.demand(RevisionName("other@1"))) == nothing
        table.forget(chat)
        assert facts_of(table.demand(chat)) == nothing

    run_virtual(main())


def test_what_is_certainly_within_a_bound_is_within_it_and_what_is_at_it_is_known_to_be():
    window, dice, total, sure, within = Windows(60, 6), random.Random(3), 0.0, 0, 0
    for second in range(2000):
        total += dice.choice([0, 1, 2, 9]) if second % 200 < 100 else 1
        window.record(a_reading(total), now=second)
        load = window.short(now=second)
        if load is None or second < 6:
            continue
        most = dice.choice([load.concurrency, load.concurrency + 1, load.concurrency - 0.1, 3.0])
        is_within = load.concurrency <= most
        is_sure = window.is_short_within(most + 1e-9, now=second)
        assert not is_sure or is_within
        sure, within = sure + is_sure, within + is_within
    assert sure > 0.9 * within > 500


@pytest.mark.parametrize("seed", range(4))
def test_loads_are_those_of_all_readings_whenever_and_however_often_they_are_asked_for(seed: int):
    """Beside a list that forgets nothing: pokes replace readings, spans are asked for or not."""
    chance = random.Random(seed)
    window, readings = Windows(60, 6), list[tuple[float, float]]()
    at, total = 1e6, 0.0
    for _ in range(2000):
        at += chance.choice([0.01, 0.1, 0.3, 1.0, 1.0, 1.0, 7.0, 70.0 * (chance.random() < 0.02)])
        total += chance.randrange(9)
        if len(readings) > 1 and at - readings[-2][0] < 0.25:
            readings.pop()
        readings.append((at, total))
        window.record(a_reading(total), now=at)
        for span_s, asked in ((60, window.long), (6, window.short)):
            if chance.random() < 0.7:
                assert figures_of(asked(now=at))[:1] == mean_of(readings, at - span_s)


def mean_of(readings: list[tuple[float, float]], begin_at: float) -> tuple[float, ...]:
    """From an instant, or from the first reading, to the last one; the mean of the growth."""
    if len(readings) < 2:
        return ()
    known = [number for number, (at, _) in enumerate(readings[:-1]) if at <= begin_at]
    place = known[-1] if known else 0
    (at, total), (next_at, next_total) = readings[place], readings[place + 1]
    if at < begin_at < next_at:
        part = (begin_at - at) / (next_at - at)
        at, total = begin_at, total + part * (next_total - total)
    elapsed_s = readings[-1][0] - at
    return () if elapsed_s <= 0 else ((readings[-1][1] - total) / elapsed_s,)
