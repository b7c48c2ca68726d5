"""Another node that shares a blob, as the directory tells of it."""

import re
from dataclasses import dataclass

from snapshotter.settings import ADDRESS, NODE_ID


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
        if len(words) != 3 or words[0] not in {"0", "1"} or not re.fullmatch(NODE_ID, words[2]):
            return None
        port = words[1].rpartition(":")[2]
        if not re.fullmatch(ADDRESS, words[1]) or not 0 < int(port) < 65536:
            return None
        return cls(words[2], words[1], words[0] == "1")
