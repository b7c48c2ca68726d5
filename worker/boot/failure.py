"""An exception of the climb as the failure that the control plane hears of."""

from infra.contracts.node import Failure
from infra.errors import DependencyMissing, Invalid, PlatformError, ReplicaFailed

LONGEST_DETAIL = 2000


def failure_of(error: BaseException) -> Failure:
    """Wrong input and missing parts stay wrong however often we try; anything else may pass."""
    if isinstance(error, PlatformError):
        return Failure(
            code=error.slug,
            detail=error.detail[:LONGEST_DETAIL],
            is_permanent=isinstance(error, Invalid | DependencyMissing),
            hint=None if error.hint is None else error.hint[:LONGEST_DETAIL],
        )
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure(code=ReplicaFailed.slug, detail=what[:LONGEST_DETAIL], is_permanent=False)
