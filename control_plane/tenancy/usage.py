"""What tenants use, counted in memory and written down every second."""

import asyncio
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple, Protocol

from infra.clock import Clock
from infra.contracts.base import ModelName
from infra.contracts.tenancy import TenantName, UsageRow
from infra.supervise import repeat

WRITE_EVERY_S: Final = 1.0
MOST_DAYS: Final = 400
_DAY_S: Final = 86_400


class Used(NamedTuple):
    """Requests that were answered, and their tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: "Used") -> "Used":
        requests, prompt_tokens, completion_tokens = other
        return Used(
            self.requests + requests,
            self.prompt_tokens + prompt_tokens,
            self.completion_tokens + completion_tokens,
        )

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def counts(self) -> Iterator[tuple[str, int]]:
        """What is not zero, by name."""
        for name, amount in zip(self._fields, self, strict=True):
            if amount:
                yield name, amount

    def row(self, day: date, tenant: TenantName, model: ModelName) -> UsageRow:
        return UsageRow(
            tenant=tenant,
            model=model,
            day=day,
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
        )


Usages = Mapping[tuple[date, TenantName, ModelName], Used]


class UsageStore(Protocol):
    """Where usage is added up. Raises StoreUnavailable."""

    async def add(self, batch_id: str, usages: Usages) -> None:
        """Adds the counts; a batch that was added before is not added again."""
        ...

    async def read(self, days: list[date]) -> list[UsageRow]:
        """Of all tenants and models on those days, by day, tenant and model."""
        ...


class MemoryUsageStore:
    """The UsageStore of tests and of a platform that keeps nothing."""

    def __init__(self) -> None:
        self._batches: set[str] = set()
        self._usages: dict[tuple[date, TenantName, ModelName], Used] = {}

    async def add(self, batch_id: str, usages: Usages) -> None:
        if batch_id in self._batches:
            return
        self._batches.add(batch_id)
        for row, used in usages.items():
            self._usages[row] = self._usages.get(row, Used()).plus(used)

    async def read(self, days: list[date]) -> list[UsageRow]:
        return [used.row(*row) for row, used in sorted(self._usages.items()) if row[0] in days]


class UsageLedger:
    """Counts for the hot path, which never waits for the store; up to a second can be lost."""

    def __init__(self, store: UsageStore, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._counted: dict[tuple[date, TenantName, ModelName], list[int]] = {}  # Used's
        self._day, self._day_began_at = date(1970, 1, 1), 0.0  # what was reckoned last
        self._batch: tuple[str, Usages] | None = None  # told to the store, which has not said yes
        self._writing = asyncio.Lock()  # guards the order of batches

    def count(
        self, tenant: TenantName, model: ModelName, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Notes what a request that ends now has used."""
        row = (self._today(), tenant, model)
        counts = self._counted.get(row)
        if counts is None:
            counts = self._counted[row] = [0, 0, 0]
        counts[0] += 1
        counts[1] += prompt_tokens
        counts[2] += completion_tokens

    async def rows(self, *, since: date, until: date) -> list[UsageRow]:
        """All that was used on those days, both included; raises StoreUnavailable."""
        await self.write()
        count = min((until - since).days + 1, MOST_DAYS)
        return await self._store.read([since + timedelta(day) for day in range(count)])

    async def run(self) -> None:
        """Writes for ever; while the store is away it keeps counting."""
        await repeat(self.write, every_s=WRITE_EVERY_S, on_failure="usage.unwritten")

    async def write(self) -> None:
        """Writes what was counted; raises StoreUnavailable, and then it is written later."""
        async with self._writing:
            if self._batch is not None:  # a store that was away may have it already
                await self._tell(self._batch)
            if self._counted:  # what is counted while this is written waits for the next time
                usages = {row: Used(*counts) for row, counts in self._counted.items()}
                self._batch, self._counted = (secrets.token_hex(8), usages), {}
                await self._tell(self._batch)

    async def _tell(self, batch: tuple[str, Usages]) -> None:
        await self._store.add(*batch)
        self._batch = None

    def _today(self) -> date:
        now = self._clock.now()
        if not self._day_began_at <= now < self._day_began_at + _DAY_S:
            self._day_began_at = now // _DAY_S * _DAY_S
            self._day = datetime.fromtimestamp(self._day_began_at, UTC).date()
        return self._day
