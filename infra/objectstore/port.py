"""The port to where large values are kept."""

import re
from typing import Final, Protocol

KEY: Final = re.compile(r"[a-z0-9_-]+(?:/[a-z0-9_-][a-z0-9_.-]*)*")


class ObjectStore(Protocol):
    """Whole values by key; keys match KEY. All may be repeated and raise StoreUnavailable."""

    async def put(self, key: str, data: bytes) -> None:
        """Keeps a value, in place of one that may be there; when it returns, it is kept."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The value; None where there is none."""
        ...

    async def delete(self, key: str) -> None:
        """Takes a value away, if there is one, and what a put that was cut short has left of it."""
        ...

    async def keys(self, folder: str, *, after: str, count: int) -> tuple[str, ...]:
        """Up to `count` keys of a folder without folders, in order, those after `after` ("": all);
        also those of which only a put that was cut short has left something."""
        ...


def checked(key: str) -> str:
    """The key, which callers make; one that could lead out of its folder is a defect of ours."""
    assert KEY.fullmatch(key), key
    return key
