import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.deployments.release import Release, Route, Share
from tests.fleet.makers import a_revision


def a_release(**percents: int) -> Release:
    """`a_release(r1=90, r2=10)`: the largest share first."""
    shares = [Share(a_revision(number=int(it[1:])), percent) for it, percent in percents.items()]
    return Release(tuple(shares), generation=1)


def picked(route: Route, times: int) -> Counter[int]:
    return Counter(route.pick(None).number for _ in range(times))


def test_all_requests_go_to_the_only_revision():
    route = Route(a_release(r3=100))
    assert picked(route, 10) == {3: 10}
    assert route.pick(key=7).number == 3


def test_every_hundred_requests_are_split_exactly():
    route = Route(a_release(r1=57, r2=33, r3=10))
    for _ in range(5):
        assert picked(route, 100) == {1: 57, 2: 33, 3: 10}


def test_a_simple_split_is_exact_in_as_few_requests_as_it_can_be():
    route = Route(a_release(r1=90, r2=10))
    for _ in range(20):
        assert picked(route, 10) == {1: 9, 2: 1}


def test_no_rhythm_of_requests_favours_a_revision():
    route = Route(a_release(r1=50, r2=50), shuffle=random.Random(1).shuffle)
    turns = [route.pick(None).number for _ in range(10_000)]
    assert Counter(turns[::2])[1] == pytest.approx(2500, abs=150)


def test_a_key_stays_and_keys_are_split_as_the_shares_say():
    route, same = (Route(a_release(r1=70, r2=25, r3=5)) for _ in range(2))
    homes = {key: route.pick(key).number for key in range(20_000)}
    assert all(same.pick(key).number == home for key, home in homes.items())
    counts = Counter(homes.values())
    for number, percent in ((1, 70), (2, 25), (3, 5)):
        assert counts[number] / 200 == pytest.approx(percent, abs=1.5)


@given(st.lists(st.integers(1, 60), min_size=6, max_size=6))
def test_a_key_moves_only_to_a_share_that_has_grown_against_its_own(weights: list[int]):
    before, after = dict(enumerate(weights[:3], 1)), dict(enumerate(weights[3:], 1))
    routes = [Route(a_release(**{f"r{it}": some[it] for it in some})) for some in (before, after)]
    for key in range(200):
        old, new = (route.pick(key).number for route in routes)
        assert old == new or after[new] * before[old] > before[new] * after[old]


def test_of_two_shares_the_one_that_grows_takes_keys_and_gives_none():
    before, after = Route(a_release(r1=90, r2=10)), Route(a_release(r1=60, r2=40))
    moved = Counter((before.pick(key).number, after.pick(key).number) for key in range(10_000))
    assert moved[2, 1] == 0
    assert moved[1, 2] / 100 == pytest.approx(30, abs=2)
