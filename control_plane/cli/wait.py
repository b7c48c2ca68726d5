"""`platform wait`: until a model is ready, or idle again."""

from control_plane.cli.failure import CommandFailed
from control_plane.cli.session import Session
from control_plane.cli.units import duration
from control_plane.cli.waiting import Waiting
from infra.contracts.revision import ModelState, ModelStatus

POLL_S = 0.1


def wait_for(session: Session, name: str, state: ModelState, *, timeout_s: float) -> ModelStatus:
    """Asks until the model is in the state; a model that cannot start fails the wait at once."""
    give_up_at = session.now() + timeout_s
    with Waiting(session.err, f"waiting for {name} to be {state.value}", now=session.now) as line:
        while True:
            status = session.platform.status(name)
            if status.state is state:
                return status
            if status.state is ModelState.FAILING and state is ModelState.READY:
                raise CommandFailed(
                    f"{name} cannot start: {status.reason}",
                    hint=status.hint or f"platform logs {name}",
                )
            line.show(describe_state(status))
            if session.now() >= give_up_at:
                raise CommandFailed(
                    f"{name} is still {status.state.value} after {duration(timeout_s)}: "
                    f"{status.reason}",
                    hint=_hint(name, state),
                )
            session.pause(POLL_S)


def describe_state(status: ModelStatus) -> str:
    """`starting, weights 40%`, or the state with the platform's reason."""
    for replica in status.replicas:
        if replica.progress is not None:
            progress = replica.progress
            return f"{status.state.value}, {progress.stage.value} {progress.fraction:.0%}"
    return f"{status.state.value}, {status.reason}" if status.reason else status.state.value


def _hint(name: str, state: ModelState) -> str:
    if state is ModelState.READY:
        return f"a model at zero wakes when it is called: platform invoke {name} --prompt Hello"
    return f"platform ls shows what keeps {name} awake"
