import pytest

from infra.clock import follow
from infra.contracts.node import ClockReading
from worker.node.clock import DRIFT, NodeClock


def reading(wall: float, monotonic: float, boot_id: str = "here") -> ClockReading:
    return ClockReading(wall=wall, monotonic=monotonic, boot_id=boot_id)


def exchange(clock: NodeClock, *, took_s: float, ahead_s: float) -> dict[str, ClockReading]:
    """One that ended now, with a remote whose clock is ahead of ours."""
    received = clock.reading()
    sent = reading(received.wall - took_s, received.monotonic - took_s, received.boot_id)
    remote = reading(received.wall - took_s / 2 + ahead_s, 7, "elsewhere")
    return {"remote": remote, "sent": sent, "received": received}


def test_a_shared_clock_is_exact():
    clock, uncertainty_s = follow(
        reading(1000, 50.1), sent=reading(0, 50.0), received=reading(0, 50.2)
    )

    assert (clock.at(50.1), uncertainty_s) == (1000, 0)


def test_one_kernel_that_shows_another_clock_is_another_machine():
    clock, uncertainty_s = follow(
        reading(1000, 1_000_050.1), sent=reading(0, 50.0), received=reading(0, 50.2)
    )

    assert clock.at(50.1) == pytest.approx(1000)
    assert uncertainty_s == pytest.approx(0.1)


def test_a_closer_look_at_the_same_remote_counts_and_a_worse_one_does_not():
    clock = NodeClock()
    clock.follow(**exchange(clock, took_s=2.0, ahead_s=500))
    assert 1.0 <= clock.uncertainty_s < 1.1

    clock.compare(**exchange(clock, took_s=0.002, ahead_s=0.3))
    assert 0.001 <= clock.uncertainty_s < 0.1
    after = clock.now()

    clock.compare(**exchange(clock, took_s=4.0, ahead_s=9))
    assert clock.now() - after < 1


def test_what_was_not_compared_for_long_counts_for_less():
    clock = NodeClock()
    old = exchange(clock, took_s=0.002, ahead_s=0)
    hour_ago = {
        name: reading(it.wall - 3600, it.monotonic - 3600, it.boot_id) for name, it in old.items()
    }
    clock.follow(**hour_ago)

    assert clock.uncertainty_s == pytest.approx(0.001 + 3600 * DRIFT, rel=0.1)


def test_a_shared_clock_is_not_compared():
    clock = NodeClock()
    now = clock.reading()
    clock.follow(now, sent=now, received=now)

    clock.compare(**exchange(clock, took_s=0.0, ahead_s=500))

    assert clock.uncertainty_s == 0
    assert clock.now() - now.wall < 10
