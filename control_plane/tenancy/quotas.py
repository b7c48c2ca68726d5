"""How much each tenant may do: requests and tokens a minute, and requests at a time."""

from dataclasses import dataclass
from typing import Final

from infra.contracts.tenancy import TenantLimits, TenantName
from infra.errors import RateLimited

UNLIMITED: Final = TenantLimits()
_MINUTE_S: Final = 60.0
_MOST_IDLE_TENANTS: Final = 10_000


@dataclass(slots=True)
class _Budget:
    """A token bucket that holds a minute's worth; it may be overdrawn, as what a request costs in
    tokens is known when it has ended.
    """

    level: float
    at: float

    def refill(self, per_minute: int, *, now: float) -> None:
        earned = max(0.0, now - self.at) * per_minute / _MINUTE_S
        self.level = min(float(per_minute), self.level + earned)
        self.at = max(self.at, now)


@dataclass(slots=True)
class _Account:
    running: int = 0
    requests: _Budget | None = None
    tokens: _Budget | None = None


class Quotas:
    """Counts for this process; a request that is admitted must be let go once."""

    def __init__(self) -> None:
        self._accounts: dict[TenantName, _Account] = {}

    def admit(self, tenant: TenantName, limits: TenantLimits, *, now: float) -> None:
        """Takes a place and one of the minute's requests; raises RateLimited and takes nothing."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._open(tenant)
        if limits is UNLIMITED:
            account.requests = account.tokens = None
            account.running += 1
            return
        if limits.concurrency is not None and account.running >= limits.concurrency:
            raise RateLimited(
                f"tenant {tenant} has {account.running} requests running",
                hint="wait for one to end, or ask for a higher concurrency",
                limit=limits.concurrency,
                retry_after_s=1,
            )
        if limits.requests_per_minute is not None or limits.tokens_per_minute is not None:
            _admit_at_its_rate(account, tenant, limits, now)
        else:
            account.requests = account.tokens = None
        account.running += 1

    def let_go(self, tenant: TenantName, *, tokens: int) -> None:
        """The request is over, and this is what it cost."""
        account = self._accounts[tenant]
        assert account.running > 0, "let go twice"
        account.running -= 1
        if account.tokens is not None:
            account.tokens.level -= tokens

    def charge(self, tenant: TenantName, tokens: int) -> None:
        """The tenant used tokens without a request that runs: a job's."""
        budget = self._open(tenant).tokens
        if budget is not None:
            budget.level -= tokens

    def running(self, tenant: TenantName) -> int:
        """Requests that were admitted and have not ended."""
        account = self._accounts.get(tenant)
        return 0 if account is None else account.running

    def _open(self, tenant: TenantName) -> _Account:
        if len(self._accounts) >= _MOST_IDLE_TENANTS:
            self._accounts = {name: it for name, it in self._accounts.items() if it.running}
        return self._accounts.setdefault(tenant, _Account())


def _admit_at_its_rate(
    account: _Account, tenant: TenantName, limits: TenantLimits, now: float
) -> None:
    requests = _refilled(account.requests, limits.requests_per_minute, now)
    tokens = _refilled(account.tokens, limits.tokens_per_minute, now)
    _require(requests, limits.requests_per_minute, f"{tenant}'s requests a minute")
    _require(tokens, limits.tokens_per_minute, f"{tenant}'s tokens a minute")
    account.requests, account.tokens = requests, tokens
    if requests is not None:
        requests.level -= 1


def _refilled(budget: _Budget | None, per_minute: int | None, now: float) -> _Budget | None:
    if per_minute is None:
        return None
    if budget is None:
        return _Budget(float(per_minute), now)
    budget.refill(per_minute, now=now)
    return budget


def _require(budget: _Budget | None, per_minute: int | None, what: str) -> None:
    """One must be left; what a request costs beyond that is paid off before the next one."""
    if budget is None or per_minute is None or budget.level >= 1:
        return
    wait_s = (1 - budget.level) * _MINUTE_S / per_minute
    raise RateLimited(
        f"{what} are used up", hint="try again later", limit=per_minute, retry_after_s=wait_s
    )
