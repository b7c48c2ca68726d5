"""When to try again after a revision's replicas fail: a pure account of its failures in a row."""

import math
from dataclasses import dataclass, replace

from infra.backoff import Backoff
from infra.contracts.base import NodeId
from infra.contracts.node import Failure


@dataclass(frozen=True, slots=True)
class CrashPolicy:
    """After `patience` failures in a row, or a permanent one, waiters are told and we back off.

    The first failure is retried at once: somebody waits, and most are one of a kind.
    """

    patience: int = 3
    retry: Backoff = Backoff(first_s=0.2, most_s=1.0)  # noqa: RUF009 - frozen value
    loop: Backoff = Backoff(first_s=1.0, most_s=60.0)  # noqa: RUF009 - frozen value
    permanent: Backoff = Backoff(first_s=5.0, most_s=300.0)  # noqa: RUF009 - frozen value
    healthy_s: float = 5.0


@dataclass(frozen=True, slots=True)
class CrashLoop:
    """Failures in a row, why and where the last one was, and when the next try may be."""

    failures: int = 0
    failed_at: float = -math.inf
    retry_at: float = 0.0
    is_open: bool = False
    detail: str = ""
    code: str = ""
    hint: str | None = None
    node_id: NodeId | None = None
    is_permanent: bool = False

    def after(
        self, failure: Failure, policy: CrashPolicy, *, node_id: NodeId, now: float
    ) -> "CrashLoop":
        """One failure more, on that node."""
        failures = self.failures + 1
        if failure.is_permanent:
            wait_s = policy.permanent.delay_s(failures)
        elif failures >= policy.patience:
            wait_s = policy.loop.delay_s(failures - policy.patience + 1)
        elif failures == 1:
            wait_s = 0.0
        else:
            wait_s = policy.retry.delay_s(failures - 1)
        return replace(
            self,
            failures=failures,
            failed_at=now,
            retry_at=now + wait_s,
            is_open=failure.is_permanent or failures >= policy.patience,
            detail=failure.detail,
            code=failure.code,
            hint=failure.hint,
            node_id=node_id,
            is_permanent=failure.is_permanent,
        )

    def after_health_since(self, ready_at: float) -> "CrashLoop":
        """A replica that came up then proved healthy: that settles what failed before it did."""
        return CrashLoop() if ready_at > self.failed_at else self

    def half_closed(self) -> "CrashLoop":
        """A replica came up: more may be started; until it proves healthy the count stands."""
        return replace(self, is_open=False, retry_at=0.0)

    def why(self) -> str:
        """The last failure, and where it was."""
        return placed(self.detail, self.node_id)

    def wait_s(self, now: float) -> float:
        """Seconds until a replica may be started again."""
        return max(0.0, self.retry_at - now)


def placed(detail: str, node_id: NodeId | None) -> str:
    """What failed, and where."""
    return f"{detail} (on node {node_id})"
