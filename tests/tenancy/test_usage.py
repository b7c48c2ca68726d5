from datetime import date

import pytest

from control_plane.tenancy.usage import MemoryUsageStore, UsageLedger, Usages, Used
from infra.contracts.base import ModelName
from infra.contracts.tenancy import TenantName, UsageRow
from infra.errors import StoreUnavailable
from tests.tenancy.conftest import Stores

ACME, BETA = TenantName("acme"), TenantName("beta")
CHAT, CODE = ModelName("chat"), ModelName("code")
DAY = 86400.0
FIRST = date(1970, 1, 1)


class StoppedClock:
    at = 0.0

    def now(self) -> float:
        return self.at


async def test_usage_adds_up_by_day_tenant_and_model(stores: Stores):
    clock = StoppedClock()
    ledger = UsageLedger(stores[1], clock=clock)
    ledger.count(ACME, CHAT, 10, 5)
    ledger.count(ACME, CHAT, 0, 7)
    ledger.count(BETA, CODE, 3, 0)
    await ledger.write()
    clock.at = DAY
    ledger.count(ACME, CHAT, 1, 1)

    rows = await ledger.rows(since=FIRST, until=date(1970, 1, 2))

    assert [
        (it.day.day, it.tenant, it.model, it.requests, it.prompt_tokens, it.completion_tokens)
        for it in rows
    ] == [(1, ACME, CHAT, 2, 10, 12), (1, BETA, CODE, 1, 3, 0), (2, ACME, CHAT, 1, 1, 1)]
    assert await ledger.rows(since=date(1970, 1, 2), until=date(1970, 1, 2)) == rows[2:]


async def test_a_batch_counts_once_however_often_it_is_told(stores: Stores):
    usages: Usages = {(FIRST, ACME, CHAT): Used(1, 2, 3)}
    for _ in range(3):
        await stores[1].add("batch", usages)

    [row] = await stores[1].read([FIRST])
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (1, 2, 3)


class Forgetful:
    """Does what it is told and says that it failed."""

    def __init__(self) -> None:
        self.fails = 2
        self._store = MemoryUsageStore()

    async def add(self, batch_id: str, usages: Usages) -> None:
        await self._store.add(batch_id, usages)
        if self.fails:
            self.fails -= 1
            raise StoreUnavailable("the connection broke before the answer")

    async def read(self, days: list[date]) -> list[UsageRow]:
        return await self._store.read(days)


async def test_what_was_done_and_said_to_have_failed_is_not_done_twice():
    ledger = UsageLedger(Forgetful(), clock=StoppedClock())
    ledger.count(ACME, CHAT, 2, 3)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await ledger.write()
        ledger.count(ACME, CHAT, 0, 0)

    [row] = await ledger.rows(since=FIRST, until=FIRST)

    assert (row.requests, row.prompt_tokens) == (3, 2)


async def test_what_is_counted_while_usage_is_written_waits_for_the_next_time():
    class Busy:
        calls = 0
        within = MemoryUsageStore()

        async def add(self, batch_id: str, usages: Usages) -> None:
            self.calls += 1
            assert self.calls < 5, "it would never end under load"
            ledger.count(ACME, CHAT, 1, 0)
            await self.within.add(batch_id, usages)

        async def read(self, days: list[date]) -> list[UsageRow]:
            return await self.within.read(days)

    store = Busy()
    ledger = UsageLedger(store, clock=StoppedClock())
    ledger.count(ACME, CHAT, 1, 0)

    await ledger.write()
    first = (store.calls, (await store.read([FIRST]))[0].requests)
    await ledger.write()

    assert first == (1, 1)
    assert (store.calls, (await store.read([FIRST]))[0].requests) == (2, 2)
