"""Whose turn it is among those who wait."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.activator.ticket import Ticket
from control_plane.activator.ticket_queue import TicketQueue
from infra.contracts.base import RevisionName
from infra.contracts.tenancy import TenantName

REVISION = RevisionName("chat@1")


def ticket(arrival: int, tenant: str = "a", priority: int = 0) -> Ticket:
    return Ticket(arrival, 1, REVISION, TenantName(tenant), priority)


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
        st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(-1, 1)),
        st.tuples(st.sampled_from(["pop", "discard"]), st.integers(0, 50), st.just(0)),
    ),
    max_size=120,
)


@given(steps=STEPS)
def test_whatever_happens_the_queue_has_who_waits_and_pops_a_tenants_first(
    steps: list[tuple[str, str | int, int]],
) -> None:
    queue, waiting = TicketQueue(), dict[int, Ticket]()
    for arrival, (step, which, priority) in enumerate(steps):
        if step == "push":
            waiting[arrival] = ticket(arrival, str(which), priority)
            queue.push(waiting[arrival])
        elif waiting and step == "pop":
            popped = queue.pop()
            mine = [it for it in waiting.values() if it.tenant == popped.tenant]
            assert popped is min(mine, key=lambda it: (it.priority, it.arrival))
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
