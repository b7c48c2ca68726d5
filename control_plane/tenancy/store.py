"""The port to where keys and tenants' limits are kept, and its in-memory fake."""

from collections.abc import Mapping
from typing import Protocol

from infra.contracts.base import Contract
from infra.contracts.tenancy import KeyId, KeyStatus, TenantLimits, TenantName


class KeyRecord(Contract):
    """A key as it is kept: its digest instead of itself."""

    status: KeyStatus
    digest: str  # sha256 of the whole key, in hex


class TenancyStore(Protocol):
    """Every method is atomic and may be repeated. Raises StoreUnavailable."""

    async def keys(self) -> Mapping[KeyId, KeyRecord]:
        """All keys, revoked ones too."""
        ...

    async def put_key(self, record: KeyRecord) -> None:
        """Keeps a key, in place of what it was before."""
        ...

    async def limits(self) -> Mapping[TenantName, TenantLimits]:
        """Of the tenants that have any."""
        ...

    async def put_limits(self, tenant: TenantName, limits: TenantLimits) -> None:
        """Keeps a tenant's limits, in place of what they were before."""
        ...


class MemoryTenancyStore:
    """The TenancyStore of tests and of a platform that keeps nothing."""

    def __init__(self) -> None:
        self._keys: dict[KeyId, KeyRecord] = {}
        self._limits: dict[TenantName, TenantLimits] = {}

    async def keys(self) -> Mapping[KeyId, KeyRecord]:
        return dict(self._keys)

    async def put_key(self, record: KeyRecord) -> None:
        self._keys[record.status.key_id] = record

    async def limits(self) -> Mapping[TenantName, TenantLimits]:
        return dict(self._limits)

    async def put_limits(self, tenant: TenantName, limits: TenantLimits) -> None:
        self._limits[tenant] = limits
