"""One suite over the directory in memory and in a real Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.errors import StoreUnavailable
from infra.redis import EmbeddedRedis
from snapshotter.blob.peers.directory import Announcement, Directory, MemoryDirectory
from snapshotter.blob.peers.peer import Peer
from snapshotter.blob.peers.redis_directory import RedisDirectory

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.real)])
async def directory(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Directory]:
    if request.param == "memory":
        yield MemoryDirectory(lambda: 0.0)
        return
    async with EmbeddedRedis(tmp_path) as server:
        redis = RedisDirectory(server.url)
        yield redis
        redis.close()


def announcement(name: str, **blobs: bool) -> Announcement:
    digests = {"one": ONE, "two": TWO}
    shared = {digests[blob]: can_fetch for blob, can_fetch in blobs.items()}
    return Announcement(name, f"10.0.0.{ord(name)}:80", shared)


def test_nodes_hear_of_the_others_of_each_blob(directory):
    directory.exchange(announcement("a", one=True, two=False))
    directory.exchange(announcement("b", one=True))

    heard = directory.exchange(announcement("c", one=True, two=True))

    assert set(heard[ONE]) == {Peer("a", "10.0.0.97:80", True), Peer("b", "10.0.0.98:80", True)}
    assert heard[TWO] == (Peer("a", "10.0.0.97:80", False),)


def test_the_last_word_of_a_node_holds(directory):
    directory.exchange(announcement("a", one=True))
    directory.exchange(announcement("a", one=False))

    heard = directory.exchange(announcement("b", one=True))

    assert heard[ONE] == (Peer("a", "10.0.0.97:80", False),)


def test_who_leaves_is_gone_at_once(directory):
    leaving = announcement("a", one=True, two=True)
    directory.exchange(leaving)
    directory.leave(leaving)

    assert directory.exchange(announcement("b", one=True, two=True)) == {ONE: (), TWO: ()}
    assert directory.exchange(announcement("b")) == {}
    directory.leave(announcement("b"))


def test_a_stripe_is_fetched_by_who_said_so_first_until_another_takes_its_place(directory):
    one, two, three = (Peer(name, f"10.0.0.{ord(name)}:80", True) for name in "abc")

    assert directory.claim(ONE, 0, one, instead_of=None) == one
    assert directory.claim(ONE, 0, two, instead_of=None) == one
    assert directory.claim(ONE, 1, two, instead_of=None) == two
    assert directory.claim(TWO, 0, two, instead_of=None) == two

    assert directory.claim(ONE, 0, two, instead_of="a") == two
    assert directory.claim(ONE, 0, three, instead_of="a") == two
    assert directory.claim(ONE, 0, two, instead_of=None) == two


def test_who_is_silent_is_forgotten():
    now = 0.0
    directory = MemoryDirectory(lambda: now, ttl_s=15)
    directory.exchange(announcement("a", one=True))
    now = 15.0

    assert directory.exchange(announcement("b", one=True)) == {ONE: ()}


@pytest.mark.real
async def test_redis_forgets_who_is_silent_and_what_is_not_a_peer(tmp_path):
    async with EmbeddedRedis(tmp_path) as server:
        patient = RedisDirectory(server.url)
        patient.exchange(announcement("a", one=True))
        patient._redis.hset(f"peers:{ONE}", "evil", "99999999999999999 1 host:1/x?y z")
        patient._redis.hset(f"peers:{ONE}", "odd", b"\xff\x00")
        assert patient.exchange(announcement("b", one=True))[ONE] == (
            Peer("a", "10.0.0.97:80", True),
        )
        hasty = RedisDirectory(server.url, ttl_s=0.001)
        while hasty.exchange(announcement("c", one=True))[ONE]:
            pass
        patient.close()
        hasty.close()


def test_a_redis_that_is_away_is_said_to_be(tmp_path):
    directory = RedisDirectory(f"unix://{tmp_path}/none.sock")
    with pytest.raises(StoreUnavailable, match="directory of peers"):
        directory.exchange(announcement("a", one=True))
    directory.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 host:80",
        "2 host:80 a",
        "1 host:0 a",
        "1 host:65536 a",
        "1 user@host:80 a",
        "1 host:80/path a",
        "1 host:80 a b",
        "1 host:80 ../a",
        "1 [::1:80 a",
    ],
)
def test_what_is_not_a_peer_is_none(text):
    assert Peer.parse(text) is None


@pytest.mark.parametrize("address", ["10.0.0.1:80", "node-1.local:8080", "[fe80::1]:443"])
def test_a_peer_is_read_back(address):
    peer = Peer("node-1", address, can_fetch=False)
    assert Peer.parse(str(peer)) == peer
