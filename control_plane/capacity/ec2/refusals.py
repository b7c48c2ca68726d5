"""What an error code of AWS means to us."""

from dataclasses import dataclass
from typing import Final

from infra.errors import (
    BadSpec,
    NoCapacity,
    PlatformError,
    ProviderUnavailable,
    QuotaExceeded,
    Throttled,
)

# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
CAPACITY: Final = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientCapacity",
        "InsufficientCapacityOnHost",
        "InsufficientReservedInstanceCapacity",
        "UnfulfillableCapacity",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "Unsupported",  # the type is not offered in this zone
        "MaxSizeReached",  # our own word: the group may not grow
        "NothingCame",  # our own word: the group never showed an instance
    }
)
QUOTA: Final = frozenset(
    {
        "InstanceLimitExceeded",
        "VcpuLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "MaxSpotFleetRequestCountExceeded",
        "SpotInstanceCountLimitExceeded",
        "TargetCapacityLimitExceededException",
        "ResourceLimitExceeded",
        "LimitExceeded",
    }
)
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/throttling.html
THROTTLING: Final = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "SlowDown",
        "ResourceContention",
        "ScalingActivityInProgress",
        "IdempotentCallInProgress",
    }
)
AWAY: Final = frozenset(
    {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable", "RequestTimeout"}
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one pool gave no machine; `zone` where one was asked for by name."""

    pool: str
    code: str
    message: str
    zone: str | None = None

    def facts(self) -> dict[str, str]:
        """As it stands in an error's `tried`."""
        where = {} if self.zone is None else {"zone": self.zone}
        return {"pool": self.pool, **where, "code": self.code}


def error_of(code: str, message: str) -> PlatformError:
    """The error of one call that was refused."""
    if code in THROTTLING:
        return Throttled(f"AWS is asked too often: {code}", retry_after_s=5, code=code)
    if code in QUOTA:
        return QuotaExceeded(f"{code}: {message}", hint=_RAISE_QUOTA, code=code)
    if code in CAPACITY:
        return NoCapacity(f"{code}: {message}", code=code)
    if code in AWAY:
        return ProviderUnavailable(f"AWS does not answer: {code}", retry_after_s=5, code=code)
    return BadSpec(f"AWS refuses: {code}: {message}", hint=_HINTS.get(code), code=code)


def error_after(refusals: list[Refusal]) -> PlatformError:
    """The error once every pool has refused: what time may change comes before a quota, and that
    before what has to be repaired."""
    tried = [refusal.facts() for refusal in refusals]
    pools = ", ".join(dict.fromkeys(refusal.pool for refusal in refusals))
    for kind, hint in ((NoCapacity, None), (QuotaExceeded, _RAISE_QUOTA), (BadSpec, None)):
        of_kind = [it for it in refusals if type(error_of(it.code, it.message)) is kind]
        if of_kind:
            last = of_kind[-1]
            hint = hint or _HINTS.get(last.code)
            detail = f"no machine from {pools}: {last.code}: {last.message}"
            return kind(detail, hint=hint, tried=tried)
    return ProviderUnavailable(f"no machine from {pools}", tried=tried, retry_after_s=5)


def code_in(message: str) -> str:
    """The code that a scaling activity's message stands for: it has one, or one of the sentences
    of userguide/ts-as-instancelaunchfailure."""
    for code in (*CAPACITY, *QUOTA, *THROTTLING):
        if code in message:
            return code
    lower = message.lower()
    return next((code for sentence, code in _SENTENCES if sentence in lower), "LaunchFailed")


_SENTENCES: Final = (
    ("not have sufficient", "InsufficientInstanceCapacity"),
    ("no spot capacity available", "UnfulfillableCapacity"),
    ("insufficient capacity", "InsufficientInstanceCapacity"),
    ("not supported in your requested availability zone", "Unsupported"),
    ("vcpu limit", "VcpuLimitExceeded"),
    ("quota", "InstanceLimitExceeded"),
    ("limit exceeded", "InstanceLimitExceeded"),
)
_RAISE_QUOTA: Final = "raise the quota of such instances in AWS Service Quotas"
_ACCESS: Final = "the control plane's role lacks a permission, or has no credentials"
_HINTS: Final = {
    "AccessDenied": _ACCESS,
    "UnauthorizedOperation": _ACCESS,
    "UnrecognizedClientException": _ACCESS,
    "InvalidClientTokenId": _ACCESS,
    "ExpiredToken": _ACCESS,
    "NoCredentials": _ACCESS,
    "MaxSizeReached": "raise the group's max_size in Terraform",
}
