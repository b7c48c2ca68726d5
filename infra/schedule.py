"""When scheduled replicas are kept: cron times in a time zone, with a duration."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from infra.contracts.model_spec import ScheduledReplicas

_ZONE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")
_ANY_DAY = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Floor:
    """So many replicas are kept because of `cron`; asked again at `until` it may be otherwise."""

    replicas: int = 0
    cron: str = ""
    until: float = math.inf


def problems_of(entry: ScheduledReplicas) -> Iterator[tuple[str, str]]:
    """What is wrong with an entry that its types do not say, as pairs of field and message."""
    try:
        fields = len(entry.cron.split())
        if fields != 5:
            yield "cron", f"has {fields} fields, 5 are expected: minute hour day month weekday"
        elif next(CronSim(entry.cron, _ANY_DAY), None) is None:
            yield "cron", "never comes"
    except (CronSimError, AssertionError, ValueError) as error:  # it asserts what it did not check
        yield "cron", f"is no cron expression: {str(error) or 'it cannot be read'}"
    if _zone_or_none(entry.timezone) is None:
        yield "timezone", "is no known time zone, such as UTC or Europe/Berlin"


def floor_at(schedule: Iterable[ScheduledReplicas], *, now: float, lead_s: float) -> Floor:
    """The most replicas that an entry keeps now, beginning `lead_s` ahead of its time."""
    floors = [_floor_of(entry, now, lead_s) for entry in schedule]
    highest = max(floors, key=lambda floor: floor.replicas, default=Floor())
    until = min((floor.until for floor in floors), default=math.inf)
    return Floor(highest.replicas, highest.cron, until)


def _floor_of(entry: ScheduledReplicas, now: float, lead_s: float) -> Floor:
    zone = _zone_or_none(entry.timezone)
    assert zone is not None, "it was checked when it was deployed"
    ahead = datetime.fromtimestamp(now + lead_s, tz=zone)
    # a second: what begins at this very moment has begun
    latest = next(CronSim(entry.cron, ahead + timedelta(seconds=1), reverse=True), None)
    coming = next(CronSim(entry.cron, ahead), None)
    opens_at = math.inf if coming is None else coming.timestamp() - lead_s
    ends_at = -math.inf if latest is None else latest.timestamp() + entry.duration
    if now >= ends_at:
        return Floor(until=opens_at)
    return Floor(entry.replicas, entry.cron, min(opens_at, ends_at))


def _zone_or_none(name: str) -> ZoneInfo | None:
    if not _ZONE_NAME.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None
