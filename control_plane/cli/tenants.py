"""`platform keys`, `tenants` and `usage`: who may call, and who called how much."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from control_plane.cli.session import Session, printable, session_of
from control_plane.cli.table import table
from control_plane.cli.units import duration
from infra.contracts.tenancy import (
    DEFAULT_TENANT,
    KeyStatus,
    NewKey,
    TenantLimits,
    TenantStatus,
    UsageRow,
)

KEY_HEADINGS = ("KEY", "TENANT", "NAME", "ROLE", "STATE", "AGE")
TENANT_HEADINGS = ("TENANT", "KEYS", "REQUESTS/MIN", "TOKENS/MIN", "CONCURRENCY", "WEIGHT")
USAGE_HEADINGS = ("DAY", "TENANT", "MODEL", "REQUESTS", "PROMPT TOKENS", "COMPLETION TOKENS")
NUMBERS = frozenset({"AGE", *TENANT_HEADINGS[1:], *USAGE_HEADINGS[3:]})

keys = typer.Typer(help="Manage API keys.", no_args_is_help=True, rich_markup_mode=None)
tenants = typer.Typer(help="Manage tenants.", no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int | None, typer.Option(min=1, show_default=False)]
Day = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A day in UTC.", show_default=False)
]


@keys.command("create")
def _create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the key is for.", show_default=False)],
    tenant: Annotated[str, typer.Option(help="Whose key it is.")] = DEFAULT_TENANT,
    admin: Annotated[
        bool, typer.Option("--admin", help="May manage keys and see all tenants.")
    ] = False,
    json: Json = False,
) -> None:
    """Make a key; it is shown this once."""
    session = session_of(context)
    was_open = not session.platform.sends_key
    created = session.platform.create_key(NewKey(name=name, tenant=tenant, is_admin=admin))
    if json:
        session.print_json(created.model_dump_json())
        return
    session.write(f"{created.key}\n")
    session.err.print(f"key {created.status.key_id} of tenant {tenant}; it is not shown again")
    if was_open:
        session.err.print("from now on the platform asks for a key: export PLATFORM_API_KEY=…")


@keys.command("ls")
def _ls(context: typer.Context, json: Json = False) -> None:
    """List keys, by what they begin with."""
    session = session_of(context)
    found = session.platform.keys()
    if json:
        session.print_json(f"[{','.join(key.model_dump_json() for key in found)}]")
    elif found:
        _print(session, KEY_HEADINGS, (_key_row(key, session.unix_now()) for key in found))
    else:
        session.err.print("there is no key: platform keys create NAME --admin")


@keys.command("revoke")
def _revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="As `ls` shows it.", show_default=False)],
) -> None:
    """Refuse a key from now on."""
    session = session_of(context)
    revoked = session.platform.revoke_key(key_id)
    session.err.print(f"key {revoked.key_id} ({printable(revoked.name)}) is revoked")


@tenants.command("ls")
def _tenants(context: typer.Context, json: Json = False) -> None:
    """List tenants with their limits."""
    session = session_of(context)
    found = session.platform.tenants()
    if json:
        session.print_json(f"[{','.join(tenant.model_dump_json() for tenant in found)}]")
    elif found:
        _print(session, TENANT_HEADINGS, map(_tenant_row, found))
    else:
        session.err.print("no tenant has keys or limits")


@tenants.command("set")
def _set(
    context: typer.Context,
    tenant: Annotated[str, typer.Argument(help="The tenant's name.", show_default=False)],
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    concurrency: Limit = None,
    weight: Annotated[int, typer.Option(min=1, max=1000)] = 1,
) -> None:
    """Set all limits of a tenant; what is left out is unlimited."""
    session = session_of(context)
    limits = TenantLimits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
        weight=weight,
    )
    status = session.platform.limit_tenant(tenant, limits)
    _print(session, TENANT_HEADINGS, [_tenant_row(status)])


def usage(context: typer.Context, since: Day = None, until: Day = None, json: Json = False) -> None:
    """Show what was used, by day (UTC), tenant and model."""
    session = session_of(context)
    found = session.platform.usage(
        since=None if since is None else since.date(), until=None if until is None else until.date()
    )
    if json:
        session.print_json(f"[{','.join(row.model_dump_json() for row in found)}]")
    elif found:
        _print(session, USAGE_HEADINGS, map(_usage_row, found))
    else:
        session.err.print("nothing was used")


def _print(session: Session, headings: Sequence[str], rows: Iterable[Sequence[Text]]) -> None:
    session.out.print(*table(headings, rows, numbers=NUMBERS), sep="\n")


def _key_row(key: KeyStatus, unix_now: float) -> list[Text]:
    is_valid = key.revoked_at is None
    return [
        Text(key.key_id),
        Text(key.tenant),
        Text(printable(key.name)),
        Text("admin" if key.is_admin else "tenant"),
        Text("valid" if is_valid else "revoked", style="green" if is_valid else "bright_black"),
        Text(duration(unix_now - key.created_at)),
    ]


def _tenant_row(tenant: TenantStatus) -> list[Text]:
    limits = tenant.limits
    amounts = (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency)
    return [
        Text(tenant.tenant),
        Text(str(tenant.keys)),
        *(Text("-" if amount is None else f"{amount:,}") for amount in amounts),
        Text(str(limits.weight)),
    ]


def _usage_row(row: UsageRow) -> list[Text]:
    counts = (row.requests, row.prompt_tokens, row.completion_tokens)
    return [
        Text(row.day.isoformat()),
        Text(row.tenant),
        Text(row.model),
        *(Text(f"{count:,}") for count in counts),
    ]
