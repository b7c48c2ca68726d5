"""One suite over what is known of proven weights in memory and in a real Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.errors import StoreUnavailable
from infra.redis import EmbeddedRedis
from snapshotter.blob.weights.proven import (
    MemoryProvenWeights,
    ProvenWeights,
    RedisProvenWeights,
)

BLOB = "sha256:" + "1" * 64


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.real)])
async def proven(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ProvenWeights]:
    if request.param == "memory":
        yield MemoryProvenWeights()
        return
    async with EmbeddedRedis(tmp_path) as server:
        yield RedisProvenWeights(server.url)


def test_the_last_proof_of_a_file_is_found_by_all(proven: ProvenWeights) -> None:
    assert proven.find(BLOB) == b""

    proven.add(BLOB, bytes(32))
    proven.add(BLOB, bytes(range(32)))

    assert proven.find(BLOB) == bytes(range(32))
    assert proven.find("sha256:" + "2" * 64) == b""


def test_a_redis_that_is_not_there_is_said_so() -> None:
    proven = RedisProvenWeights("redis://127.0.0.1:1")

    with pytest.raises(StoreUnavailable):
        proven.find(BLOB)
    with pytest.raises(StoreUnavailable):
        proven.add(BLOB, bytes(32))
