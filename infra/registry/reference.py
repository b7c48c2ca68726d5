"""What an image is called: `host[:port]/repository[:tag][@sha256:…]`."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from infra.contracts.image import IMAGE_PATTERN
from infra.errors import ImageInvalid

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def is_this_machine(host: str) -> bool:
    """Whether a registry's `host[:port]` is on this machine, by its name alone."""
    name = host.rpartition(":")[0] or host
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


@dataclass(frozen=True)
class Reference:
    """An image of a registry; without tag and digest it means the tag `latest`."""

    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """Raises ImageInvalid. The registry has to be named: there is no default one."""
        match = IMAGE_PATTERN.fullmatch(text) if len(text) < 1024 else None
        if match is None or len(match["repository"]) > 255:
            raise ImageInvalid(
                f"{text[:200]!r} names no image",
                hint="write host[:port]/repository[:tag] or host[:port]/repository@sha256:…",
            )
        if "." not in match["host"] and ":" not in match["host"] and match["host"] != "localhost":
            raise ImageInvalid(
                f"{text[:200]!r} does not say which registry",
                hint="begin with the registry's host, as in docker.io/library/debian",
            )
        return cls(match["host"], match["repository"], match["tag"], match["digest"])

    @property
    def wanted(self) -> str:
        """What to ask the registry for: the digest if there is one."""
        return self.digest or self.tag or "latest"

    @property
    def endpoint(self) -> str:
        """The host that answers for the registry."""
        return "registry-1.docker.io" if self.host == "docker.io" else self.host

    def at(self, digest: str) -> "Reference":
        """The same repository, pinned."""
        return Reference(self.host, self.repository, None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"
