"""Whose turn it is among those who wait."""

import math
from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.activator.ticket import Ticket
from control_plane.activator.ticket_queue import TicketQueue
from infra.contracts.base import RevisionName
from infra.contracts.tenancy import TenantName

REVISION = RevisionName("chat@1")


def ticket(
    arrival: int,
    tenant: str = "a",
    priority: int = 0,
    *,
    held_until: float = math.inf,
    weight: int = 1,
) -> Ticket:
    one = Ticket(arrival, 1, REVISION, TenantName(tenant), priority, weight=weight)
    one.held_until = held_until
    return one


def queue_of(*tickets: Ticket) -> TicketQueue:
    queue = TicketQueue()
    for one in tickets:
        queue.push(one)
    return queue


def order(queue: TicketQueue) -> list[int]:
    return [queue.pop().arrival for _ in range(len(queue))]


def test_one_tenant_is_served_first_come_first_served() -> None:
    assert order(queue_of(*map(ticket, range(200)))) == list(range(200))


def test_a_ticket_that_comes_back_gets_the_place_of_its_arrival() -> None:
    queue = queue_of(ticket(0), ticket(1), ticket(2))
    first = queue.pop()

    queue.push(first)

    assert order(queue) == [0, 1, 2]


def test_lower_priorities_go_first_within_a_tenant_only() -> None:
    queue = queue_of(
        ticket(0, "a", 5), ticket(1, "a", -5), ticket(2, "b", 9), ticket(3, "a", 0), ticket(4, "b")
    )

    assert order(queue) == [1, 4, 3, 2, 0]


def test_of_one_priority_the_earliest_deadline_goes_first_and_those_without_one_last() -> None:
    queue = queue_of(
        ticket(0),
        ticket(1, held_until=30.0),
        ticket(2, held_until=10.0),
        ticket(3, priority=-1),
        ticket(4, held_until=10.0),
        ticket(5, priority=1, held_until=1.0),
        ticket(6),
    )

    assert order(queue) == [3, 2, 4, 1, 0, 6, 5]


def test_a_deadline_takes_no_turn_from_another_tenant() -> None:
    queue = queue_of(
        *(ticket(n, "calm") for n in range(3)),
        *(ticket(n, "hasty", held_until=float(n)) for n in range(10, 13)),
    )

    assert [queue.pop().tenant for _ in range(6)] == ["calm", "hasty"] * 3


def test_turns_go_by_weight() -> None:
    queue = queue_of(
        *(ticket(n, "heavy", weight=3) for n in range(100)),
        *(ticket(n, "light") for n in range(100, 200)),
    )

    served = Counter(queue.pop().tenant for _ in range(80))

    assert served == {"heavy": 60, "light": 20}


def test_a_heavy_tenant_that_was_away_has_saved_no_turns() -> None:
    queue = queue_of(*(ticket(n, "light") for n in range(100)))
    for _ in range(50):
        queue.pop()
    for n in range(200, 300):
        queue.push(ticket(n, "heavy", weight=3))

    served = Counter(queue.pop().tenant for _ in range(20))

    assert served["light"] >= 5


def test_who_comes_to_a_long_line_of_another_tenant_waits_for_one_turn() -> None:
    queue = queue_of(*(ticket(n, "many") for n in range(100)))
    served = [queue.pop().arrival for _ in range(50)]

    queue.push(ticket(1000, "few"))

    assert served == list(range(50))
    assert 1000 in [queue.pop().arrival for _ in range(2)]


def test_leaving_and_coming_again_wins_no_turns() -> None:
    """A tenant that never lets more than one request wait still gets one turn in two."""
    queue = queue_of(*(ticket(n, "patient") for n in range(100)))
    arrivals = count(1000)
    served = []
    for _ in range(40):
        restless = ticket(next(arrivals), "restless")
        queue.push(restless)
        queue.discard(restless)
        queue.push(ticket(next(arrivals), "restless"))
        served.append(queue.pop().tenant)
        for left in [one for one in queue if one.tenant == "restless"]:
            queue.discard(left)

    assert 19 <= served.count(TenantName("restless")) <= 21


def test_an_empty_queue_has_nobodys_turn() -> None:
    with pytest.raises(IndexError):
        TicketQueue().pop()


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.sampled_from("abc"),
            st.integers(-1, 1),
            st.sampled_from([1.0, 2.0, math.inf]),
        ),
        st.tuples(
            st.sampled_from(["pop", "discard"]), st.integers(0, 50), st.just(0), st.just(0.0)
        ),
    ),
    max_size=120,
)


@given(steps=STEPS)
def test_whatever_happens_the_queue_has_who_waits_and_pops_a_tenants_first(
    steps: list[tuple[str, str | int, int, float]],
) -> None:
    queue, waiting = TicketQueue(), dict[int, Ticket]()
    for arrival, (step, which, priority, until) in enumerate(steps):
        if step == "push":
            waiting[arrival] = ticket(arrival, str(which), priority, held_until=until)
            queue.push(waiting[arrival])
        elif waiting and step == "pop":
            popped = queue.pop()
            mine = [it for it in waiting.values() if it.tenant == popped.tenant]
            assert popped is min(mine, key=lambda it: (it.priority, it.held_until, it.arrival))
            del waiting[popped.arrival]
        elif waiting:
            left = sorted(waiting)[int(which) % len(waiting)]
            queue.discard(waiting.pop(left))
        assert len(queue) == len(waiting)
        assert {it.arrival for it in queue} == set(waiting)
    assert [it.arrival for it in queue.drain()] == sorted(waiting)
    assert len(queue) == 0


@given(crowd=st.lists(st.sampled_from("abcd"), min_size=1, max_size=80), turns=st.integers(1, 80))
def test_while_a_tenant_waits_nobody_gets_more_than_one_turn_more(
    crowd: list[str], turns: int
) -> None:
    queue = queue_of(*(ticket(n, tenant) for n, tenant in enumerate(crowd)))
    left = {tenant: crowd.count(tenant) for tenant in crowd}
    got = dict.fromkeys(left, 0)
    for _ in range(min(turns, len(crowd))):
        tenant = str(queue.pop().tenant)
        got[tenant] += 1
        left[tenant] -= 1
        for waiting in (one for one, count_left in left.items() if count_left):
            assert max(got.values()) <= got[waiting] + 1


WEIGHTS = {"a": 1, "b": 1, "c": 2, "d": 5}
CROWD = st.lists(st.sampled_from("abcd"), min_size=40, max_size=80)
COMINGS = st.lists(
    st.sampled_from(["a", "b", "c", "d", "pop", "pop", "leave"]), min_size=20, max_size=150
)


@given(crowd=CROWD, steps=COMINGS)
def test_turns_by_weight_of_two_that_wait_never_drift_apart(
    crowd: list[str], steps: list[str]
) -> None:
    """Whoever comes, is served and leaves meanwhile: the bound of start-time fair queueing, over
    every stretch in which both wait."""
    queue = TicketQueue()
    since: dict[tuple[str, str], Counter[str]] = {}  # turns while both of a pair have waited
    for arrival, step in enumerate([*crowd, *steps]):
        if step == "leave" and queue:
            queue.discard(min(queue, key=lambda one: one.arrival))
        elif step == "pop" and queue:
            served = str(queue.pop().tenant)
            for pair, turns in since.items():
                if served in pair:
                    turns[served] += 1
        elif step in WEIGHTS:
            queue.push(ticket(arrival, step, weight=WEIGHTS[step]))
        waiting = Counter(str(one.tenant) for one in queue)
        pairs = [(one, other) for one in waiting for other in waiting if one < other]
        since = {pair: since.get(pair, Counter()) for pair in pairs}
        for (one, other), turns in since.items():
            drift = abs(turns[one] / WEIGHTS[one] - turns[other] / WEIGHTS[other])
            assert drift <= 1 / WEIGHTS[one] + 1 / WEIGHTS[other] + 1e-9


@given(steps=COMINGS, mine=st.sampled_from("abcd"), position=st.integers(1, 6))
def test_no_tenant_delays_another_beyond_its_share(
    steps: list[str], mine: str, position: int
) -> None:
    """Whatever happened before and whatever comes behind it, of each other tenant no more turns
    than its share come before the n-th of one that has just come."""
    queue = TicketQueue()
    for arrival, step in enumerate(steps):
        if step == "pop" and queue:
            queue.pop()
        elif step in WEIGHTS and step != mine:
            queue.push(ticket(arrival, step, weight=WEIGHTS[step]))
    arrivals = count(1000)
    own = [ticket(next(arrivals), mine, weight=WEIGHTS[mine]) for _ in range(position)]
    for one in own:
        queue.push(one)
    before: Counter[str] = Counter()
    while own[-1] in list(queue):
        for tenant, weight in WEIGHTS.items():  # everybody else always has more
            if tenant != mine:
                queue.push(ticket(next(arrivals), tenant, weight=weight))
        before[str(queue.pop().tenant)] += 1
    for tenant, turns in before.items():
        if tenant != mine:
            share = WEIGHTS[tenant] / WEIGHTS[mine]
            assert turns <= 1 + share * (position - 1) + 1e-9
