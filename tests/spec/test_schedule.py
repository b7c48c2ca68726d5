from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.model_spec import ScheduledReplicas
from infra.schedule import Floor, floor_at, problems_of

BERLIN = ZoneInfo("Europe/Berlin")
WORKDAY = ScheduledReplicas(cron="0 8 * * 1-5", timezone="Europe/Berlin", duration=10 * 3600)


def at(day: int, hour: int, minute: int = 0, *, month: int = 3) -> float:
    return datetime(2026, month, day, hour, minute, tzinfo=BERLIN).timestamp()


def test_a_window_opens_at_its_time_and_closes_after_its_duration():
    monday = 23
    before = floor_at([WORKDAY], now=at(monday, 7, 59), lead_s=0)
    assert before == Floor(0, "", until=at(monday, 8))
    opened = floor_at([WORKDAY], now=at(monday, 8), lead_s=0)
    assert opened == Floor(1, WORKDAY.cron, until=at(monday, 18))
    assert floor_at([WORKDAY], now=at(monday, 17, 59), lead_s=0) == opened
    assert floor_at([WORKDAY], now=at(monday, 18), lead_s=0) == Floor(0, "", at(monday + 1, 8))


def test_it_opens_ahead_by_what_a_cold_start_takes_and_closes_no_later():
    early = floor_at([WORKDAY], now=at(23, 7, 59), lead_s=60)
    assert early == Floor(1, WORKDAY.cron, until=at(23, 18))
    assert floor_at([WORKDAY], now=at(23, 18), lead_s=60).replicas == 0
    assert floor_at([WORKDAY], now=at(23, 7, 58), lead_s=60).until == at(23, 7, 59)


def test_eight_o_clock_stays_eight_o_clock_when_the_clocks_change():
    # in Berlin summer time begins on 29 March 2026 and ends on 25 October
    for day, month in ((27, 3), (30, 3), (23, 10), (26, 10)):
        assert floor_at([WORKDAY], now=at(day, 7, 59, month=month), lead_s=0).replicas == 0
        assert floor_at([WORKDAY], now=at(day, 8, month=month), lead_s=0).replicas == 1
    friday = floor_at([WORKDAY], now=at(27, 18), lead_s=0)
    assert (
        friday.until == at(30, 8) == at(27, 18) + 61 * 3600
    )  # an hour less than on other weekends


def test_of_windows_that_overlap_the_most_replicas_count_and_each_end_is_looked_at():
    lunch = ScheduledReplicas(
        cron="0 12 * * *", timezone="Europe/Berlin", duration=3600, replicas=4
    )
    noon = floor_at([WORKDAY, lunch], now=at(23, 12, 30), lead_s=0)
    assert noon == Floor(4, lunch.cron, until=at(23, 13))
    assert floor_at([WORKDAY, lunch], now=at(23, 13), lead_s=0).replicas == 1


def test_a_window_longer_than_its_period_is_always_open():
    always = ScheduledReplicas(cron="0 * * * *", duration=2 * 3600)
    for hour in range(24):
        assert floor_at([always], now=at(23, hour, 59), lead_s=0).replicas == 1


def test_nothing_scheduled_never_changes():
    assert floor_at([], now=0.0, lead_s=10) == Floor()


def test_an_entry_that_is_right_has_no_problems():
    assert list(problems_of(WORKDAY)) == []


@pytest.mark.parametrize(
    "cron", ["", "0 8 * *", "0 0 8 * * *", "x" * 200, "99 * * * *", "1-0 * * * *", "0 0 */31 2 1#5"]
)
def test_what_is_no_cron_expression_is_a_problem(cron: str):
    entry = ScheduledReplicas(cron=cron, duration=1)
    assert [field for field, _ in problems_of(entry)] == ["cron"]


@given(st.text(alphabet="0123456789*/,-#LW ", max_size=40))
def test_no_expression_brings_the_reader_down(cron: str):
    entry = ScheduledReplicas(cron=cron, duration=60)
    if not list(problems_of(entry)):
        floor_at([entry], now=at(23, 12), lead_s=5)


@given(st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)), st.floats(0, 600))  # noqa: DTZ001
def test_what_was_said_holds_until_the_time_that_was_said(when: datetime, lead_s: float):
    now = when.replace(tzinfo=UTC).timestamp()
    floor = floor_at([WORKDAY], now=now, lead_s=lead_s)
    assert now < floor.until
    just_before = min(floor.until - 1, now + timedelta(days=3).total_seconds())
    if just_before > now:
        assert floor_at([WORKDAY], now=just_before, lead_s=lead_s).replicas == floor.replicas
    assert floor_at([WORKDAY], now=floor.until, lead_s=lead_s).replicas != floor.replicas
