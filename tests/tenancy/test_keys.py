import asyncio
from collections.abc import Mapping

import pytest

from control_plane.tenancy.identity import OPERATOR, Identity
from control_plane.tenancy.keys import Keys
from control_plane.tenancy.store import KeyRecord, MemoryTenancyStore
from infra.contracts.tenancy import KeyId, NewKey, TenantLimits, TenantName
from infra.errors import Conflict, NotFound, StoreUnavailable, Unauthorized
from tests.tenancy.conftest import Stores

ACME = TenantName("acme")
ADMIN = NewKey(name="ops", is_admin=True)
CALLER = NewKey(name="app", tenant=ACME)


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


async def test_without_any_key_everybody_is_the_operator(stores: Stores):
    keys = Keys(stores[0])

    assert not keys.asks_for_keys
    assert keys.identify(None) == OPERATOR


async def test_a_key_says_whose_it_is_and_what_it_may(stores: Stores):
    keys = Keys(stores[0])
    admin = await keys.create(ADMIN, now=1)
    caller = await keys.create(CALLER, now=2)

    assert keys.identify(bearer(caller.key)) == Identity(ACME, is_admin=False)
    assert keys.identify(bearer(admin.key)).is_admin
    assert keys.identify(b"bearer  " + caller.key.encode() + b" ").tenant == ACME
    assert keys.listed() == [admin.status, caller.status]
    assert caller.key.startswith(caller.status.prefix)


async def test_what_is_no_valid_key_is_refused(stores: Stores):
    keys = Keys(stores[0])
    await keys.create(ADMIN, now=1)
    key = (await keys.create(CALLER, now=2)).key

    for header in (
        *(None, b"", b"Bearer", b"Bearer ", b"Bearer \xff\xfe", b"Bearer fl_", b"Bearer fl__"),
        *(key.encode(), b"Basic " + key.encode(), bearer(key[:-1]), bearer(key + "A")),
        *(bearer(key.upper()), bearer(key.partition("_")[0])),
    ):
        with pytest.raises(Unauthorized):
            keys.identify(header)


async def test_keys_are_kept_as_digests_only(stores: Stores):
    keys = Keys(stores[0])
    created = await keys.create(ADMIN, now=1)

    [record] = (await stores[0].keys()).values()
    secret = created.key.split("_", 2)[2]  # which may have underscores of its own
    assert secret not in record.model_dump_json()
    assert created.key not in repr(created)


async def test_the_first_key_has_to_be_an_admins(stores: Stores):
    keys = Keys(stores[0])
    with pytest.raises(Conflict):
        await keys.create(CALLER, now=1)
    assert not keys.asks_for_keys

    rooted = Keys(stores[0], root_key="sesame-sesame-sesame")
    await rooted.create(CALLER, now=1)
    assert rooted.identify(b"Bearer sesame-sesame-sesame") == OPERATOR


async def test_a_revoked_key_is_refused_here_at_once_and_elsewhere_after_a_refresh(stores: Stores):
    here, elsewhere = Keys(stores[0]), Keys(stores[0])
    await here.create(ADMIN, now=1)
    caller = await here.create(CALLER, now=2)
    await elsewhere.refresh()
    assert elsewhere.identify(bearer(caller.key)).tenant == ACME

    await here.revoke(caller.status.key_id, now=3)
    again = await here.revoke(caller.status.key_id, now=4)
    await elsewhere.refresh()

    assert again.revoked_at == 3
    for keys in (here, elsewhere):
        with pytest.raises(Unauthorized):
            keys.identify(bearer(caller.key))


async def test_the_last_admin_stays_while_others_have_keys(stores: Stores):
    keys = Keys(stores[0])
    admin = await keys.create(ADMIN, now=1)
    caller = await keys.create(CALLER, now=2)

    with pytest.raises(Conflict):
        await keys.revoke(admin.status.key_id, now=3)
    await keys.revoke(caller.status.key_id, now=4)
    await keys.revoke(admin.status.key_id, now=5)

    assert not keys.asks_for_keys


async def test_an_unknown_key_cannot_be_revoked(stores: Stores):
    with pytest.raises(NotFound):
        await Keys(stores[0]).revoke(KeyId("nope"), now=1)


async def test_tenants_are_those_with_keys_or_limits(stores: Stores):
    keys = Keys(stores[0])
    await keys.create(ADMIN, now=1)
    await keys.create(CALLER, now=2)
    limited = await keys.limit(TenantName("beta"), TenantLimits(concurrency=3, weight=4))

    assert [(it.tenant, it.keys) for it in keys.tenants()] == [
        ("acme", 1),
        ("beta", 0),
        ("default", 1),
    ]
    assert (
        keys.limits_of(TenantName("beta"))
        == limited.limits
        == TenantLimits(concurrency=3, weight=4)
    )
    assert keys.weight_of(TenantName("beta")) == 4
    assert keys.weight_of(ACME) == 1
    assert keys.limits_of(ACME) == TenantLimits()


async def test_a_key_that_is_revoked_while_all_are_read_stays_revoked():
    class Slow(MemoryTenancyStore):
        """Once it is told to, its answer comes late, and is out of date by then."""

        late: asyncio.Event | None = None

        async def keys(self) -> Mapping[KeyId, KeyRecord]:
            found = await super().keys()
            late, self.late = self.late, None
            if late is not None:
                await late.wait()
            return found

    store = Slow()
    keys = Keys(store)
    await keys.create(ADMIN, now=1)
    caller = await keys.create(CALLER, now=2)
    late = store.late = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keys.refresh())
        await asyncio.sleep(0)
        tasks.create_task(keys.revoke(caller.status.key_id, now=3))
        for _ in range(20):  # as far as it comes
            await asyncio.sleep(0)
        late.set()

    with pytest.raises(Unauthorized):
        keys.identify(bearer(caller.key))


async def test_known_keys_open_while_the_store_is_away():
    class Away(MemoryTenancyStore):
        is_away = False

        async def keys(self):
            if self.is_away:
                raise StoreUnavailable("away")
            return await super().keys()

    store = Away()
    keys = Keys(store)
    admin = await keys.create(ADMIN, now=1)
    store.is_away = True

    with pytest.raises(StoreUnavailable):
        await keys.refresh()
    assert keys.identify(bearer(admin.key)).is_admin
