"""An agenda: who is looked at, and what it remembers of times that were put off."""

from infra.agenda import Agenda


def test_a_time_that_is_put_off_again_and_again_is_kept_once() -> None:
    agenda = Agenda[str]()
    agenda.add_at("other", 100.0)
    for second in range(10_000):
        agenda.add_at("busy", second + 3600.0)

    assert len(agenda._heap) < 200

    assert agenda.take(now=3599.0) == {"other"}
    assert agenda.take(now=3600.0 + 9_998) == set()
    agenda.add_at("late", 3600.0 + 9_999)
    assert agenda.take(now=3600.0 + 9_999) == {"busy", "late"}
    assert agenda.take(now=1e9) == set()
