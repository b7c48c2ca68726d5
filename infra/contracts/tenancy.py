"""Who calls: API keys, the tenants they belong to, and what those have used."""

from datetime import date
from typing import Annotated, NewType

from pydantic import Field, StringConstraints

from infra.contracts.base import MODEL_NAME_PATTERN, Contract, ModelName

TenantName = NewType("TenantName", str)
KeyId = NewType("KeyId", str)

DEFAULT_TENANT = TenantName("default")

Tenant = Annotated[TenantName, StringConstraints(pattern=MODEL_NAME_PATTERN)]


class NewKey(Contract):
    """What `platform keys create` asks for."""

    name: str = Field(min_length=1, max_length=64, description="What the key is for.")
    tenant: Tenant = Field(default=DEFAULT_TENANT, description="Whose key it is.")
    is_admin: bool = Field(default=False, description="May manage keys and see all tenants.")


class KeyStatus(Contract):
    """A key as it is listed; the key itself is shown once, when it is made."""

    key_id: KeyId
    prefix: str = Field(description="How the key begins: enough to tell it from others.")
    name: str
    tenant: Tenant
    is_admin: bool
    created_at: float = Field(description="Unix seconds.")
    revoked_at: float | None = Field(default=None, description="Unix seconds; unset while valid.")


class CreatedKey(Contract):
    """The answer to NewKey; nobody can show the key again."""

    key: str = Field(repr=False)
    status: KeyStatus


class TenantLimits(Contract):
    """What all requests of one tenant together may do; unset is unlimited.

    `weight` limits nothing: it is the tenant's share where requests of several are held.
    """

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Requests a minute."
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="Tokens a minute, in and out."
    )
    concurrency: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Requests held or running at a time."
    )
    weight: int = Field(
        default=1, ge=1, le=1000, description="Turns of held requests, to one of others' weight 1."
    )


class TenantStatus(Contract):
    """A tenant that has keys, limits or models."""

    tenant: Tenant
    limits: TenantLimits
    keys: int = Field(ge=0, description="Valid keys.")


class UsageRow(Contract):
    """What one tenant used of one model on one day (UTC)."""

    tenant: Tenant
    model: ModelName
    day: date
    requests: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
