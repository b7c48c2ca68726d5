"""Routes of keys, tenants and usage."""

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from control_plane.api.auth import Caller
from control_plane.api.services import Services
from infra.contracts.tenancy import (
    CreatedKey,
    KeyId,
    KeyStatus,
    NewKey,
    Tenant,
    TenantLimits,
    TenantStatus,
    UsageRow,
)
from infra.errors import Invalid

_SHOWN_DAYS = 30


class KeyList(BaseModel):
    """Every key, the oldest first."""

    object: Literal["list"] = "list"
    data: list[KeyStatus]


class TenantList(BaseModel):
    """Every tenant with keys or limits, by name."""

    object: Literal["list"] = "list"
    data: list[TenantStatus]


class UsageList(BaseModel):
    """A row for each day, tenant and model with any use."""

    object: Literal["list"] = "list"
    data: list[UsageRow]


def tenants_router(services: Services) -> APIRouter:
    """The routes that say who may call, and who called how much."""
    router = APIRouter(prefix="/v1", tags=["tenants"])

    @router.post("/keys", status_code=201)
    async def create_key(asked: NewKey, caller: Caller) -> CreatedKey:
        """Makes a key, which this answer shows and no other; an admin's affair."""
        caller.require_admin()
        return await services.keys.create(asked, now=services.clock.now())

    @router.get("/keys")
    async def list_keys(caller: Caller) -> KeyList:
        """Every key, revoked ones too; an admin's affair."""
        caller.require_admin()
        return KeyList(data=services.keys.listed())

    @router.delete("/keys/{key_id}")
    async def revoke_key(
        key_id: Annotated[KeyId, Path(max_length=64)], caller: Caller
    ) -> KeyStatus:
        """Refuses a key from now on; what runs in its name may finish; an admin's affair."""
        caller.require_admin()
        return await services.keys.revoke(key_id, now=services.clock.now())

    @router.get("/tenants")
    async def list_tenants(caller: Caller) -> TenantList:
        """Every tenant; an admin's affair."""
        caller.require_admin()
        return TenantList(data=services.keys.tenants())

    @router.put("/tenants/{tenant}")
    async def limit_tenant(
        tenant: Annotated[Tenant, Path()], limits: TenantLimits, caller: Caller
    ) -> TenantStatus:
        """Sets all limits of a tenant; an admin's affair."""
        caller.require_admin()
        return await services.keys.limit(tenant, limits)

    @router.get("/usage")
    async def show_usage(
        caller: Caller, since: date | None = None, until: date | None = None
    ) -> UsageList:
        """What the caller's tenant used, or for an admin everybody; the last 30 days (UTC)."""
        last = until or datetime.fromtimestamp(services.clock.now(), UTC).date()
        first = since or last - timedelta(_SHOWN_DAYS - 1)
        if first > last:
            raise Invalid(f"since ({first}) is after until ({last})", param="since")
        rows = await services.usage.rows(since=first, until=last)
        return UsageList(
            data=[row for row in rows if caller.is_admin or row.tenant == caller.tenant]
        )

    return router
