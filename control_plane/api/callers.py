"""Admits a generation request in its tenant's name, and books what it has used."""

from collections.abc import Callable
from dataclasses import dataclass, field

from control_plane.activator.call import TokenCount
from control_plane.tenancy.identity import Identity
from control_plane.tenancy.keys import Keys
from control_plane.tenancy.quotas import Quotas
from control_plane.tenancy.usage import UsageLedger, Used
from infra.clock import Clock
from infra.contracts.base import ModelName


@dataclass(eq=False, slots=True)
class Visit:
    """One request of a caller; `model` is set once it is known and may be called."""

    identity: Identity
    tokens: TokenCount = field(default_factory=TokenCount)
    model: ModelName | None = None


class Callers:
    """Keys, quotas and usage as the hot path needs them: without a wait."""

    def __init__(
        self,
        keys: Keys,
        quotas: Quotas,
        usage: UsageLedger,
        clock: Clock,
        check_lead: Callable[[], None],
    ) -> None:
        self._check_lead = check_lead
        self._keys = keys
        self._quotas = quotas
        self._usage = usage
        self._clock = clock

    def enter(self, authorization: bytes | None) -> Visit:
        """Begins a visit, which must end once; raises NotLeader, Unauthorized, RateLimited."""
        self._check_lead()
        identity = self._keys.identify(authorization)
        limits = self._keys.limits_of(identity.tenant)
        self._quotas.admit(identity.tenant, limits, now=self._clock.now())
        return Visit(identity)

    def leave(self, visit: Visit) -> None:
        """The request is over; what an answer cost counts however it ended."""
        tokens, tenant = visit.tokens, visit.identity.tenant
        self._quotas.let_go(tenant, tokens=tokens.prompt + tokens.completion)
        if visit.model is not None and tokens.has_begun:
            self._usage.count(tenant, visit.model, Used(1, tokens.prompt, tokens.completion))
