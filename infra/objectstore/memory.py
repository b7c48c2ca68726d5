"""Values that end with the process."""

from infra.objectstore.port import checked


class MemoryObjects:
    """The ObjectStore of tests."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def put(self, key: str, data: bytes) -> None:
        self.values[checked(key)] = data

    async def get(self, key: str) -> bytes | None:
        return self.values.get(checked(key))

    async def delete(self, key: str) -> None:
        self.values.pop(checked(key), None)
