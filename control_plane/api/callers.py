"""Admits a generation request in its tenant's name, and books what it has used."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
    tokens: TokenCount
    model: ModelName | None = None


class Callers:
    """Keys, quotas and usage as the hot path needs them: without a wait."""

    def __init__(self, keys: Keys, quotas: Quotas, usage: UsageLedger, clock: Clock) -> None:
        self._keys = keys
        self._quotas = quotas
        self._usage = usage
        self._clock = clock

    @contextmanager
    def visit(self, authorization: bytes | None) -> Iterator[Visit]:
        """Raises Unauthorized, RateLimited. What an answer cost counts however it ended."""
        identity = self._keys.identify(authorization)
        limits = self._keys.limits_of(identity.tenant)
        self._quotas.admit(identity.tenant, limits, now=self._clock.now())
        visit = Visit(identity, TokenCount())
        try:
            yield visit
        finally:
            used = Used(1, visit.tokens.prompt, visit.tokens.completion)
            self._quotas.let_go(identity.tenant, tokens=used.tokens)
            if visit.model is not None and visit.tokens.has_begun:
                self._usage.count(identity.tenant, visit.model, used)
