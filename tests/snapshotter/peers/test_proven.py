"""One suite over what is known of proven weights in memory and in a real Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import Redis

from infra.errors import StoreUnavailable
from infra.redis import EmbeddedRedis
from snapshotter.blob.weights.proven import (
    MemoryProvenWeights,
    ProvenWeights,
    RedisProvenWeights,
)

BLOB = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64


def redis_of(url: str, token: str = "a token of nodes") -> RedisProvenWeights:
    return RedisProvenWeights(url, token=token)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.real)])
async def proven(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ProvenWeights]:
    if request.param == "memory":
        yield MemoryProvenWeights()
        return
    async with EmbeddedRedis(tmp_path) as server:
        yield redis_of(server.url)


def test_the_last_proof_of_a_file_is_found_by_all(proven: ProvenWeights) -> None:
    assert proven.find(BLOB) == b""

    proven.add(BLOB, bytes(32))
    proven.add(BLOB, bytes(range(32)))

    assert proven.find(BLOB) == bytes(range(32))
    assert proven.find(OTHER) == b""


def test_a_redis_that_is_not_there_is_said_so() -> None:
    proven = redis_of("redis://127.0.0.1:1")

    with pytest.raises(StoreUnavailable):
        proven.find(BLOB)
    with pytest.raises(StoreUnavailable):
        proven.add(BLOB, bytes(32))


@pytest.mark.real
async def test_who_may_only_write_to_redis_proves_nothing(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        nodes, stranger = redis_of(server.url), redis_of(server.url, token="another token")
        redis = Redis.from_url(server.url)
        nodes.add(BLOB, bytes(64))
        signed = redis.get(f"weights:{BLOB}")
        assert isinstance(signed, bytes)
        assert nodes.find(BLOB) == bytes(64)

        flipped = bytes([signed[0] ^ 1]) + signed[1:]
        for forged in (b"x", bytes(32), bytes(64), bytes(96), flipped, signed[32:], signed[:-1]):
            redis.set(f"weights:{BLOB}", forged)
            assert nodes.find(BLOB) == b"", forged
        redis.set(f"weights:{OTHER}", signed)
        assert nodes.find(OTHER) == b"", "digests of one file are no other's"
        stranger.add(BLOB, bytes(64))
        assert nodes.find(BLOB) == b""
        redis.close()
