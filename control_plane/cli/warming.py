"""Changes where requests go once the revisions that are to get more of them are ready."""

import math
from collections.abc import Mapping, Sequence

from control_plane.cli.failure import CommandFailed
from control_plane.cli.session import Session
from control_plane.cli.units import duration
from control_plane.cli.waiting import Waiting
from infra.contracts.release import RevisionStatus, TrafficStatus
from infra.contracts.revision import ModelState
from infra.contracts.warming import WarmStatus

POLL_S = 0.2


def switch(
    session: Session, name: str, percents: Mapping[str, int], *, timeout_s: float
) -> TrafficStatus:
    """Splits the requests once that costs no cold start, unless somebody changed them meanwhile."""
    before = session.platform.traffic(name)
    warm(session, name, percents, timeout_s=timeout_s)
    return session.platform.split(name, percents, generation=before.generation)


def warm(session: Session, name: str, percents: Mapping[str, int], *, timeout_s: float) -> None:
    """Waits until each revision has its share of the replicas that serve the model now; where none
    serves, nothing is lost by a switch. Raises CommandFailed, with nothing switched, where they
    cannot start or take longer than that."""
    wanted = replicas_wanted(session.platform.revisions(name), percents)
    if not wanted:
        return
    give_up_at = session.now() + timeout_s
    what = f"warming {', '.join(wanted)}"
    with Waiting(session.err, what, now=session.now) as line:
        while True:
            asked = [
                session.platform.warm(name, revision, replicas=replicas)
                for revision, replicas in wanted.items()
            ]
            cold = [status for status in asked if not status.is_warm]
            if not cold:
                return
            for status in cold:
                if status.state is ModelState.FAILING:
                    raise _not_switched(status, "cannot start")
            if session.now() >= give_up_at:
                raise _not_switched(cold[0], f"is not ready after {duration(timeout_s)}")
            line.show(f"{cold[0].revision}: {cold[0].reason}")
            session.pause(POLL_S)


def replicas_wanted(kept: Sequence[RevisionStatus], percents: Mapping[str, int]) -> dict[str, int]:
    """By revision, for those that have fewer replicas than their share of those that serve."""
    serving = sum(status.replicas for status in kept if status.percent)
    has = {str(status.revision): status.replicas for status in kept}
    shares = {it: math.ceil(serving * percent / 100) for it, percent in percents.items()}
    return {it: share for it, share in shares.items() if share > has.get(it, 0)}


def _not_switched(status: WarmStatus, why: str) -> CommandFailed:
    return CommandFailed(
        f"{status.revision} {why}: {status.reason}; no request was switched to it",
        hint=status.hint or "--now switches at once, and requests wait for it",
    )
