"""Which requests meet at one replica: those of a session, and those that begin alike."""

import re
from collections.abc import Mapping
from typing import Final

from control_plane.activator.balancer import hash_of
from infra.contracts.tenancy import TenantName
from infra.errors import Invalid

# Prompts that are shorter have little that is worth computing only once.
PREFIX_BYTES: Final = 1024

_SESSION: Final = "Firstlight-Session"
_NAME: Final = re.compile(rb"[!-~]{1,256}")


def session_of(headers: Mapping[bytes, bytes], tenant: TenantName) -> int | None:
    """The key of the session that the headers name, if they do; raises Invalid."""
    session = headers.get(b"firstlight-session")
    if session is None:
        return None
    if _NAME.fullmatch(session) is None:
        raise Invalid(
            f"the header {_SESSION} is not 1 to 256 visible ASCII characters", param=_SESSION
        )
    return hash_of(b"session", tenant.encode(), session)


def prompt_of(body: bytes, tenant: TenantName) -> int | None:
    """The key of how a long prompt begins: PREFIX_BYTES of the JSON after its key, as it was sent.

    None where there is no such prompt.
    """
    if len(body) < PREFIX_BYTES:
        return None
    start = body.find(b'"messages"')
    if start < 0:
        start = body.find(b'"prompt"')
    if start < 0 or len(body) - start < PREFIX_BYTES:
        return None
    return hash_of(b"prompt", tenant.encode(), body[start : start + PREFIX_BYTES])
