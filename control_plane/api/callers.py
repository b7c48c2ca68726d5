"""Admits a generation request in its tenant's name, and books what it has used."""

from collections.abc import Callable

from control_plane.activator.call import TokenCount
from control_plane.tenancy.identity import Identity
from control_plane.tenancy.keys import Keys
from control_plane.tenancy.quotas import Quotas
from control_plane.tenancy.usage import UsageLedger
from infra.contracts.base import ModelName


class Callers:
    """Keys, quotas and usage as the hot path needs them: without a wait."""

    def __init__(
        self,
        keys: Keys,
        quotas: Quotas,
        usage: UsageLedger,
        check_lead: Callable[[], None],
    ) -> None:
        self._check_lead = check_lead
        self._keys = keys
        self._quotas = quotas
        self._usage = usage

    def enter(self, authorization: bytes | None, *, now: float) -> Identity:
        """Begins a visit, which must end once; raises NotLeader, Unauthorized, RateLimited."""
        self._check_lead()
        identity = self._keys.identify(authorization)
        limits = self._keys.limits_of(identity.tenant)
        self._quotas.admit(identity.tenant, limits, now=now)
        return identity

    def leave(self, caller: Identity, model: ModelName | None, tokens: TokenCount | None) -> None:
        """The request is over; what an answer cost counts however it ended.

        `model` is known if it may be called, `tokens` if there was a call.
        """
        tenant = caller.tenant
        if tokens is None:
            self._quotas.let_go(tenant, tokens=0)
            return
        self._quotas.let_go(tenant, tokens=tokens.prompt + tokens.completion)
        if model is not None and tokens.has_begun:
            self._usage.count(tenant, model, tokens.prompt, tokens.completion)
