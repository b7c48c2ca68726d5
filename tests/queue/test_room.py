import pytest

from control_plane.queue.room import room_for_jobs


@pytest.mark.parametrize(
    ("permits", "concurrency", "running", "expected"),
    [
        (0, 0, 0, 1),  # asleep: one job wakes it
        (0, 1, 1, 0),  # and waits alone
        (0, 40, 0, 1),  # also behind others
        (32, 0, 0, 33),  # every permit, and one that waits
        (32, 20, 20, 13),
        (32, 33, 33, 0),
        (32, 32, 0, 1),  # others have all permits
        (32, 50, 0, 1),  # one job always gets its turn
        (32, 50, 1, 0),
        (32, 10, 0, 23),
        (0, 33, 33, 0),  # the replica has just gone
    ],
)
def test_jobs_fill_what_others_leave(
    permits: int, concurrency: int, running: int, expected: int
) -> None:
    assert room_for_jobs(permits=permits, concurrency=concurrency, running=running) == expected
