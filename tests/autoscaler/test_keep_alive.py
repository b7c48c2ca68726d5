import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from control_plane.autoscaler.keep_alive import REMEMBERED, KeepAlive, best_grace_s, cost_s

ROUNDING = 1 + 1e-9

seconds = st.floats(0, 1e5)
prices = st.floats(0.01, 5000)


def paid_s(idle_s: float, grace_s: float, cold_cost_s: float) -> float:
    return idle_s if idle_s <= grace_s else grace_s + cold_cost_s


def test_without_any_past_the_grace_is_the_break_even_time():
    assert KeepAlive().grace_s(70.0) == 70.0


@given(st.lists(st.tuples(seconds, prices), max_size=200))
@example([(10.0, 100.0)] * 100 + [(101.0, 100.0)] * 100)
def test_whatever_comes_it_costs_at_most_twice_the_clairvoyant(
    past: list[tuple[float, float]],
):
    keep_alive = KeepAlive()
    ours = clairvoyant = past[0][1] if past else 0.0  # the first cold start
    for idle_s, cold_cost_s in past:
        grace_s = keep_alive.grace_s(cold_cost_s)
        assert 0 <= grace_s <= 2 * cold_cost_s
        ours += paid_s(idle_s, grace_s, cold_cost_s)
        clairvoyant += min(idle_s, cold_cost_s)
        keep_alive.settle(idle_s, grace_s=grace_s, cold_cost_s=cold_cost_s)
        assert ours <= 2 * clairvoyant * ROUNDING


@given(st.lists(st.sampled_from(["just too late", "at once", "never", "in time"]), max_size=300))
def test_an_adversary_who_sees_the_grace_gains_nothing(moves: list[str]):
    cold_cost_s, keep_alive = 60.0, KeepAlive()
    costs: list[tuple[float, float]] = []
    for move in moves:
        grace_s = keep_alive.grace_s(cold_cost_s)
        idle_s = {
            "just too late": grace_s + 1e-6,
            "at once": 0.001,
            "never": 1e6,
            "in time": grace_s,
        }[move]
        costs.append((paid_s(idle_s, grace_s, cold_cost_s), min(idle_s, cold_cost_s)))
        keep_alive.settle(idle_s, grace_s=grace_s, cold_cost_s=cold_cost_s)
    ours, clairvoyant = (sum(it) for it in zip((cold_cost_s, cold_cost_s), *costs, strict=True))
    assert ours <= 2 * clairvoyant * ROUNDING
    for begin in range(len(costs)):  # wherever one begins to count
        late, best = (sum(it) for it in zip(*costs[begin:], strict=True))
        assert late <= (2 * best + cold_cost_s) * ROUNDING


@pytest.mark.parametrize("cold_cost_s", [22.7, 0.1, 7 / 3])
def test_who_is_too_late_a_thousand_times_does_not_blow_rounding_up(cold_cost_s: float):
    keep_alive = KeepAlive()
    ours = clairvoyant = cold_cost_s
    for _ in range(1000):
        grace_s = keep_alive.grace_s(cold_cost_s)
        idle_s = grace_s + 1e-3
        ours += paid_s(idle_s, grace_s, cold_cost_s)
        clairvoyant += min(idle_s, cold_cost_s)
        keep_alive.settle(idle_s, grace_s=grace_s, cold_cost_s=cold_cost_s)
    assert 0 <= keep_alive.saved_s < 1e-6 and keep_alive.grace_s(cold_cost_s) < 2 * cold_cost_s
    assert ours <= 2 * clairvoyant * ROUNDING


def test_a_model_whose_users_stay_away_for_long_is_soon_stopped_at_once():
    keep_alive = KeepAlive()
    graces = []
    for _ in range(40):
        graces.append(keep_alive.grace_s(60.0))
        keep_alive.settle(600.0, grace_s=graces[-1], cold_cost_s=60.0)
        grace_s = keep_alive.grace_s(60.0)
        keep_alive.settle(20.0, grace_s=grace_s, cold_cost_s=60.0)  # and for a moment
    assert graces[0] == 60 and graces[-1] == 20


def test_calls_at_regular_times_far_apart_are_soon_not_waited_for():
    keep_alive = KeepAlive()
    for _ in range(4):
        keep_alive.settle(600.0, grace_s=keep_alive.grace_s(60.0), cold_cost_s=60.0)
    assert keep_alive.grace_s(60.0) == 0.0


def test_a_model_whose_users_come_back_in_time_is_kept_longer_than_the_break_even_time():
    keep_alive = KeepAlive()
    for idle_s in [20.0, 70.0] * 20:
        keep_alive.settle(idle_s, grace_s=keep_alive.grace_s(60.0), cold_cost_s=60.0)
    assert keep_alive.grace_s(60.0) == 70.0


def test_a_cheaper_cold_start_shortens_the_grace_at_once():
    keep_alive = KeepAlive([5.0, 40.0] * 3 + [200.0], saved_s=100.0)
    assert keep_alive.grace_s(60.0) == 40.0
    assert keep_alive.grace_s(3.0) == 0.0


def test_the_past_is_bounded_and_the_oldest_goes_first():
    keep_alive = KeepAlive(float(it) for it in range(REMEMBERED + 5))
    assert keep_alive.idle_times == tuple(float(it) for it in range(5, REMEMBERED + 5))
    assert keep_alive._ascending == sorted(keep_alive.idle_times)


@given(st.lists(seconds, min_size=3, max_size=50), prices)
def test_the_best_grace_is_not_beaten_by_any_other(idle_times: list[float], cold_cost_s: float):
    ascending = sorted(idle_times)
    least = cost_s(ascending, best_grace_s(ascending, cold_cost_s), cold_cost_s)
    for other in [0.0, cold_cost_s, *(it for it in ascending if it <= 2 * cold_cost_s)]:
        assert least <= cost_s(ascending, other, cold_cost_s) * ROUNDING


def test_what_a_fixed_grace_costs():
    assert cost_s([1.0, 5.0, 9.0], 5.0, 100.0) == pytest.approx(1 + 5 + 5 + 100)
