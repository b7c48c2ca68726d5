"""Another node that shares a blob, as the directory tells of it."""

import re
from dataclasses import dataclass
from typing import Final

NODE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ADDRESS: Final = re.compile(
    r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]):(?P<port>\d{1,5})"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """`address` is `host:port`. Who can fetch brings chunks that it has not; others give what
    they have.
    """

    node_id: str
    address: str
    can_fetch: bool

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def __str__(self) -> str:
        return f"{int(self.can_fetch)} {self.address} {self.node_id}"

    @classmethod
    def parse(cls, text: str) -> "Peer | None":
        """The inverse of `str`; None for anything else, whoever wrote it."""
        words = text.split(" ")
        if len(words) != 3 or words[0] not in {"0", "1"} or not NODE_ID.fullmatch(words[2]):
            return None
        address = _ADDRESS.fullmatch(words[1])
        if address is None or not 0 < int(address["port"]) < 65536:
            return None
        return cls(words[2], words[1], words[0] == "1")
