"""Goes through the revisions that are due, a bounded amount of work at a time."""

from collections.abc import Callable, Iterator

import structlog

from control_plane.autoscaler.decision import Tuning
from control_plane.autoscaler.judge import LOOKED, STARTED, Judge
from control_plane.autoscaler.roster import Roster
from control_plane.autoscaler.standby_keeper import StandbyKeeper
from control_plane.autoscaler.tracked import Tracked

log = structlog.get_logger()

_SLICE = 250  # others get their turn after so many looks' worth of a tick: a millisecond or two
_TAKEN = 2000  # of those whose time has come, likewise
_LEAST_PART = 12  # of a tick's work that is for decisions, however many it looks at


class Rounds:
    """The ticks of who leads; `has_looked` is told of each revision that was looked at."""

    def __init__(
        self,
        roster: Roster,
        judge: Judge,
        standby: StandbyKeeper,
        *,
        tuning: Tuning,
        has_looked: Callable[[Tracked], None],
    ) -> None:
        self._roster = roster
        self._judge = judge
        self._standby = standby
        self._tuning = tuning
        self._has_looked = has_looked

    def interrupt(self) -> None:
        """Another decides: the next tick looks at all."""
        self._judge.ticked_at = None
        self._judge.put_off.clear()

    def ticking(self, now: float) -> Iterator[None]:
        """See Autoscaler.ticking."""
        judge = self._judge
        if judge.ticked_at is not None and now < judge.ticked_at:
            self._step_back(now)
        if judge.ticked_at is None:
            self.look_everywhere()
        changed = judge.changed()
        is_long = len(changed) > _SLICE
        if is_long:
            yield
        due = judge.agenda.take(now=now, most=_TAKEN)
        while judge.agenda.is_due(now=now):
            yield
            due |= judge.agenda.take(now=now, most=_TAKEN)
        due.update(judge.put_off)
        if is_long:
            yield
        most = self._tuning.most_work
        left = max(most - len(due), most // _LEAST_PART)
        done = 0
        for tracked in self._roster.these(due):
            if tracked.name in changed:
                tracked.changed_at = now
            cost = self._look(tracked, now=now, is_late=left <= 0)
            left -= cost - LOOKED
            done += cost
            if done >= _SLICE:
                done = 0
                yield
        judge.ticked_at = now
        if is_long:
            yield
        self._standby.tick(now)

    @property
    def is_behind(self) -> bool:
        """See Autoscaler.is_behind."""
        return bool(self._judge.put_off)

    def catching_up(self, now: float) -> Iterator[None]:
        """See Autoscaler.catching_up."""
        judge = self._judge
        if judge.ticked_at is None or now < judge.ticked_at:
            return  # the next tick looks at all
        left, done = self._tuning.most_work, 0
        for name in tuple(judge.put_off):
            tracked = self._roster.get(name)
            if left <= 0:
                return
            if tracked is None or name not in judge.put_off:  # decided meanwhile
                continue
            cost = self._look(tracked, now=now)
            left -= cost
            done += cost
            if done >= _SLICE:
                done = 0
                yield

    def look_everywhere(self) -> None:
        """See Autoscaler.look_everywhere."""
        self._judge.agenda.add_all(self._roster.names())
        for tracked in self._roster:
            tracked.band = None

    def _step_back(self, now: float) -> None:
        """The clock did: what was to be looked at later would wait for it."""
        self._judge.ticked_at = None
        for tracked in self._roster:
            tracked.step_back(now=now, calm_s=self._tuning.stable_s)

    def _look(self, tracked: Tracked, *, now: float, is_late: bool = False) -> int:
        cost = STARTED
        try:
            cost = self._judge.look(tracked, now=now, is_late=is_late)
            self._has_looked(tracked)
        except Exception:  # the others must not wait for it, and it is not to be forgotten
            log.exception("autoscaler.look-failed", revision=tracked.name)
            self._judge.agenda.add(tracked.name)
        return cost
