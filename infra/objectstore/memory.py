"""Values that end with the process."""

from infra.errors import StoreUnavailable
from infra.objectstore.port import checked


class MemoryObjects:
    """The ObjectStore of tests; it answers while `is_up`."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.is_up = True

    async def put(self, key: str, data: bytes) -> None:
        self._check()
        self.values[checked(key)] = data

    async def get(self, key: str) -> bytes | None:
        self._check()
        return self.values.get(checked(key))

    async def delete(self, key: str) -> None:
        self._check()
        self.values.pop(checked(key), None)

    async def keys(self, folder: str, *, after: str, count: int) -> tuple[str, ...]:
        self._check()
        there = (it for it in self.values if it.rpartition("/")[0] == folder and it > after)
        return tuple(sorted(there)[:count])

    def _check(self) -> None:
        if not self.is_up:
            raise StoreUnavailable("the store of results is down")
