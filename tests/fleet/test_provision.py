import pytest

from control_plane.fleet.node import Node
from control_plane.fleet.provision import Provision
from infra.contracts.node import ClockReading
from infra.contracts.stage import StagePart
from tests.fleet.makers import a_registration


def a_part(name: str, seconds: float) -> StagePart:
    return StagePart(name=name, seconds=seconds)


def test_a_machine_that_was_rented_for_a_replica_is_accounted_for_step_by_step():
    provision = Provision(answered_at=101.5, booted_at=112, started_at=119, registered_at=119.5)

    assert provision.parts(100, 120) == (
        a_part("api", 1.5),
        a_part("machine", 10.5),
        a_part("boot", 7),
        a_part("agent", 0.5),
        a_part("assignment", 0.5),
    )


def test_a_node_that_was_there_before_has_no_parts():
    provision = Provision(answered_at=1, booted_at=2, started_at=3, registered_at=100)

    assert provision.parts(100, 101) == ()


def test_what_had_happened_before_the_wait_is_no_part_of_it():
    provision = Provision(answered_at=90, booted_at=95, started_at=103, registered_at=104)

    assert provision.parts(100, 105) == (
        a_part("boot", 3),
        a_part("agent", 1),
        a_part("assignment", 1),
    )


@pytest.mark.parametrize("answered_at", [None, 0, 99.5, 103, 1e9])
@pytest.mark.parametrize("booted_at", [0, 100, 102, 1e9])
@pytest.mark.parametrize("started_at", [101, 98, 1e9])
def test_parts_add_up_to_the_wait_whatever_the_clocks_say(answered_at, booted_at, started_at):
    provision = Provision(answered_at, booted_at, started_at, registered_at=104)

    parts = provision.parts(100, 105)

    assert sum(part.seconds for part in parts) == pytest.approx(5)
    assert all(part.seconds > 0 for part in parts)


def test_the_times_of_a_node_are_reckoned_into_our_clock():
    its = ClockReading(wall=5_000, monotonic=40, boot_id="b")
    registration = a_registration(clock=its, started_at=4_998, asked_at=70)

    node = Node.registered(registration, version=1, lease_s=10, now=100)

    assert (node.booted_at, node.started_at, node.asked_at) == (60, 98, 70)
    assert Provision.of(node) == Provision(70, 60, 98, 100)
    assert Provision.of(node, answered_at=59) == Provision(59, 60, 98, 100)
