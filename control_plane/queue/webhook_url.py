"""What may be named as a webhook, as far as that is known before its name is resolved."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from infra.addresses import is_public
from infra.errors import Invalid

CheckUrl = Callable[[str], None]

_PARAM = "Firstlight-Webhook"


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """Whether webhooks may be named at all, and of which networks.

    Private networks are for use on one machine; there, plain http is allowed, too.
    """

    has_secret: bool
    allows_private: bool = False

    def check(self, url: str) -> None:
        """Raises Invalid for a webhook that would never be called."""
        if not self.has_secret:
            raise _refused("webhooks are off", hint="set PLATFORM_WEBHOOK_SECRET")
        host = parsed(url, allows_http=self.allows_private).hostname or ""
        if not self.allows_private and _is_address(host) and not is_public(host):
            raise _refused(f"the address {host} is not one of the internet's")


def parsed(url: str, *, allows_http: bool) -> SplitResult:
    """The parts of a webhook's address; raises Invalid."""
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise _refused("the webhook is not a URL") from None
    if parts.scheme not in ({"https", "http"} if allows_http else {"https"}):
        raise _refused("the webhook's URL does not begin with https://")
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if not (is_whole and is_plain) or parts.username is not None or parts.password is not None:
        raise _refused("the webhook's URL is not https://host/path")
    return parts


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _refused(detail: str, *, hint: str | None = None) -> Invalid:
    return Invalid(detail, hint=hint, param=_PARAM)
