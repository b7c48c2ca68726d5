"""Whether one more request may wait, as a pure function."""

from dataclasses import dataclass
from typing import Final

from infra.contracts.base import RevisionName
from infra.contracts.model_spec import Limits
from infra.errors import QueueFull

_COLD_RETRY_S: Final = 5.0
_LONGEST_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for one revision, and how fast it goes.

    `permits` is how many requests its ready replicas take at once, `mean_hold_s` how long one
    keeps its permit.
    """

    revision: RevisionName
    waiting: int
    waiting_bytes: int
    permits: int
    mean_hold_s: float

    def retry_after_s(self) -> float:
        """Seconds after which about half of what waits now will have been taken."""
        if self.permits == 0:
            return _COLD_RETRY_S
        half_s = self.waiting * self.mean_hold_s / self.permits / 2
        return min(_LONGEST_RETRY_S, max(1.0, half_s))


def admit(backlog: Backlog, size: int, limits: Limits) -> None:
    """Raises QueueFull unless a request of `size` bytes may wait as well."""
    if backlog.waiting >= limits.max_queue:
        raise QueueFull(
            f"{backlog.revision} holds {backlog.waiting} requests already",
            hint="try again later, or raise limits.max_queue",
            limit=limits.max_queue,
            retry_after_s=backlog.retry_after_s(),
        )
    if backlog.waiting_bytes + size > limits.max_queue_bytes:
        raise QueueFull(
            f"{backlog.revision} holds {backlog.waiting_bytes} bytes of requests already",
            hint="try again later, or raise limits.max_queue_bytes",
            limit_bytes=limits.max_queue_bytes,
            retry_after_s=backlog.retry_after_s(),
        )
