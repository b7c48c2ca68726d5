"""Reads from a request's headers that its caller will not wait, and on what terms."""

import re
from collections.abc import Mapping
from typing import Final

from control_plane.queue.order import Terms
from control_plane.queue.webhook_url import CheckUrl
from infra.errors import Invalid

DEFAULT_DEADLINE_S = 24 * 3600.0
MOST_DEADLINE_S = 7 * 24 * 3600.0
DEFAULT_ATTEMPTS = 3
MOST_ATTEMPTS = 10
MOST_KEY_CHARACTERS = 255

_RESPOND_ASYNC = re.compile(rb"(?:^|[,;\s])respond-async\s*(?:$|[,;])", re.IGNORECASE)
_SECONDS = re.compile(r"[0-9]{1,7}(?:\.[0-9]{1,3})?")
_VISIBLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")

_DEADLINE: Final = b"firstlight-deadline"
_ATTEMPTS: Final = b"firstlight-max-attempts"
_WEBHOOK: Final = b"firstlight-webhook"
_KEY: Final = b"idempotency-key"

Headers = Mapping[bytes, bytes]


def wants_job(headers: Headers) -> bool:
    """Whether the request says `Prefer: respond-async` (RFC 7240, section 4.1)."""
    return _RESPOND_ASYNC.search(headers.get(b"prefer", b"")) is not None


def terms_of(headers: Headers, check_webhook: CheckUrl) -> Terms:
    """The terms in the headers of a job; raises Invalid, also what `check_webhook` raises."""
    webhook_url = _text(headers, _WEBHOOK, most=2048)
    if webhook_url is not None:
        check_webhook(webhook_url)
    idempotency_key = _text(headers, _KEY, most=MOST_KEY_CHARACTERS)
    return Terms(_deadline_s(headers), _attempts(headers), webhook_url, idempotency_key)


def _deadline_s(headers: Headers) -> float:
    text = _text(headers, _DEADLINE, most=16)
    if text is None:
        return DEFAULT_DEADLINE_S
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not 0 < seconds <= MOST_DEADLINE_S:
        raise _wrong(_DEADLINE, f"is not seconds from 0.001 to {MOST_DEADLINE_S:.0f}")
    return seconds


def _attempts(headers: Headers) -> int:
    text = _text(headers, _ATTEMPTS, most=2)
    if text is None:
        return DEFAULT_ATTEMPTS
    attempts = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= attempts <= MOST_ATTEMPTS:
        raise _wrong(_ATTEMPTS, f"is not a number from 1 to {MOST_ATTEMPTS}")
    return attempts


def _text(headers: Headers, name: bytes, *, most: int) -> str | None:
    value = headers.get(name)
    if value is None:
        return None
    text = value.decode("latin-1")
    if len(text) > most or _VISIBLE.fullmatch(text) is None:
        raise _wrong(name, f"is not 1 to {most} visible ASCII characters")
    return text


def _wrong(name: bytes, problem: str) -> Invalid:
    shown = name.decode().title()
    return Invalid(f"the header {shown} {problem}", param=shown)
