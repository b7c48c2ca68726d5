"""API keys: made, listed, revoked, and recognised in constant time."""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Final

import structlog

from control_plane.tenancy.identity import OPERATOR, Identity
from control_plane.tenancy.quotas import UNLIMITED
from control_plane.tenancy.store import KeyRecord, TenancyStore
from infra.contracts.tenancy import (
    CreatedKey,
    KeyId,
    KeyStatus,
    NewKey,
    TenantLimits,
    TenantName,
    TenantStatus,
)
from infra.errors import Conflict, NotFound, Unauthorized
from infra.supervise import repeat

log = structlog.get_logger()

REFRESH_EVERY_S = 2.0  # after at most so long a key that another process revoked is refused

_SCHEME: Final = b"bearer "
_MARK = "fl_"
_ID_BYTES = 5
_SECRET_BYTES = 32
_NO_DIGEST = "-" * 64  # of no key
_compare_digest: Final = hmac.compare_digest


class Keys:
    """Knows who calls, from memory; `root_key` is an admin's that is in no store.

    Without any key, everybody is an admin. Keys have 256 random bits, so that one round of
    SHA-256 keeps them: nothing can be guessed that would have to be slowed down. A key that was
    recognised is compared with itself until the keys are read again.
    """

    def __init__(self, store: TenancyStore, *, root_key: str | None = None) -> None:
        self._store = store
        self._root_digest = None if root_key is None else _digest(root_key.encode())
        self._records: Mapping[KeyId, KeyRecord] = {}
        self._limits: Mapping[TenantName, TenantLimits] = {}
        self._recognised: dict[bytes, tuple[bytes, Identity]] = {}  # public id → key, whose it is
        # Guards the rule that an admin is left, and that what was read last is what holds.
        self._changing = asyncio.Lock()
        self.asks_for_keys = root_key is not None

    def identify(self, authorization: bytes | None) -> Identity:
        """Raises Unauthorized unless the `Authorization` header carries a valid key."""
        if not self.asks_for_keys:
            return OPERATOR
        given = authorization or b""
        if given[: len(_SCHEME)].lower() == _SCHEME:
            key = given[len(_SCHEME) :].strip()
            public_id = _id_of(key)
            before = self._recognised.get(public_id)
            if before is not None and _compare_digest(key, before[0]):
                return before[1]
            identity = self._look_up(key, public_id)
            if identity is not None:
                self._recognised[public_id] = (key, identity)
                return identity
        raise Unauthorized(
            "the API key is wrong" if authorization else "an API key is needed",
            hint="send it as `Authorization: Bearer <key>`",
        )

    def _look_up(self, key: bytes, public_id: bytes) -> Identity | None:
        digest = _digest(key)
        if _compare_digest(digest, self._root_digest or _NO_DIGEST):
            return OPERATOR
        record = self._records.get(KeyId(public_id.decode("latin-1")))
        known = _NO_DIGEST if record is None else record.digest
        if _compare_digest(digest, known) and record is not None and _is_valid(record):
            return Identity(record.status.tenant, is_admin=record.status.is_admin)
        return None

    def limits_of(self, tenant: TenantName) -> TenantLimits:
        return self._limits.get(tenant, UNLIMITED)

    def weight_of(self, tenant: TenantName) -> int:
        """The tenant's share of turns."""
        limits = self._limits.get(tenant)
        return 1 if limits is None else limits.weight

    def listed(self) -> list[KeyStatus]:
        """Every key, the oldest first."""
        found = (record.status for record in self._records.values())
        return sorted(found, key=lambda status: (status.created_at, status.key_id))

    def tenants(self) -> list[TenantStatus]:
        """Every tenant with limits or valid keys, by name."""
        valid = [record.status.tenant for record in self._records.values() if _is_valid(record)]
        return [
            TenantStatus(tenant=name, limits=self.limits_of(name), keys=valid.count(name))
            for name in sorted({*valid, *self._limits})
        ]

    async def create(self, asked: NewKey, *, now: float) -> CreatedKey:
        """Raises Conflict for a first key that is no admin's, and StoreUnavailable."""
        async with self._changing:
            await self._read()
            if not (asked.is_admin or self.asks_for_keys):
                raise Conflict(
                    "the first key has to be an admin's: from then on keys are asked for",
                    hint="make one with --admin, or set PLATFORM_API_KEY",
                )
            key_id = KeyId(secrets.token_hex(_ID_BYTES))
            prefix = f"{_MARK}{key_id}"
            key = f"{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}"
            status = KeyStatus(
                key_id=key_id,
                prefix=prefix,
                name=asked.name,
                tenant=asked.tenant,
                is_admin=asked.is_admin,
                created_at=now,
            )
            await self._store.put_key(KeyRecord(status=status, digest=_digest(key.encode())))
            await self._read()
        return CreatedKey(key=key, status=status)

    async def revoke(self, key_id: KeyId, *, now: float) -> KeyStatus:
        """Refuses the key from now on; a revoked one stays revoked.

        Raises NotFound, Conflict where nobody could manage keys any more, StoreUnavailable.
        """
        async with self._changing:
            await self._read()
            record = self._records.get(key_id)
            if record is None:
                raise NotFound(f"there is no key {key_id!r}", hint="`platform keys ls` lists them")
            if not _is_valid(record):
                return record.status
            if record.status.is_admin and not self._leaves_an_admin(key_id):
                raise Conflict(
                    "this is the last admin's key and others depend on it",
                    hint="make another admin's key, or revoke the others first",
                )
            revoked = record.status.model_copy(update={"revoked_at": now})
            await self._store.put_key(record.model_copy(update={"status": revoked}))
            await self._read()
        return revoked

    async def limit(self, tenant: TenantName, limits: TenantLimits) -> TenantStatus:
        """Sets a tenant's limits; raises StoreUnavailable."""
        async with self._changing:
            await self._store.put_limits(tenant, limits)
            await self._read()
        return next(status for status in self.tenants() if status.tenant == tenant)

    async def refresh(self) -> None:
        """Reads all keys and limits; raises StoreUnavailable, then what was read before holds."""
        async with self._changing:
            await self._read()

    async def _read(self) -> None:
        self._records, self._limits = await self._store.keys(), await self._store.limits()
        self._recognised.clear()
        self.asks_for_keys = self._root_digest is not None or any(
            map(_is_valid, self._records.values())
        )

    async def run(self) -> None:
        """Refreshes for ever."""
        await repeat(self.refresh, every_s=REFRESH_EVERY_S, on_failure="keys.stale")

    def _leaves_an_admin(self, key_id: KeyId) -> bool:
        others = [it.status for it in self._records.values() if it.status.key_id != key_id]
        valid = [status for status in others if status.revoked_at is None]
        return not valid or any(status.is_admin for status in valid) or bool(self._root_digest)


def _is_valid(record: KeyRecord) -> bool:
    return record.status.revoked_at is None


def _id_of(key: bytes) -> bytes:
    return key[len(_MARK) :].partition(b"_")[0]


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
