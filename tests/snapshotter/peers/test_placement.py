from collections import Counter

from snapshotter.blob.peers.peer import Peer
from snapshotter.blob.peers.placement import home_of, whom_to_ask
from snapshotter.index.chunk_table import Chunk

NODES = ["a", "b", "c", "d"]
BLOB = "sha256:" + "0" * 64


def peers_but(own_id: str, *, can_fetch: bool = True) -> list[Peer]:
    return [Peer(it, "127.0.0.1:1", can_fetch) for it in NODES if it != own_id]


def test_all_nodes_know_one_home_and_it_asks_no_home():
    for stripe in range(200):
        home = home_of(BLOB, stripe, NODES)
        for own_id in NODES:
            asks = whom_to_ask(BLOB, stripe, own_id, peers_but(own_id))
            homes = [ask.peer.node_id for ask in asks if ask.may_fetch]
            assert homes == ([] if own_id == home else [home])
            assert len({ask.peer.node_id for ask in asks}) == len(asks) <= 2


def test_homes_are_spread_and_a_node_that_leaves_moves_only_its_own():
    before = [home_of(BLOB, stripe, NODES) for stripe in range(2000)]
    after = [home_of(BLOB, stripe, NODES[:-1]) for stripe in range(2000)]

    shares = Counter(before)
    assert min(shares.values()) > 400 and len(shares) == 4
    assert all(was == now for was, now in zip(before, after, strict=True) if was != "d")


def test_a_new_home_asks_the_one_that_was_it_before():
    for stripe in range(200):
        old = home_of(BLOB, stripe, NODES[:-1])
        if home_of(BLOB, stripe, NODES) == "d":
            (ask,) = whom_to_ask(BLOB, stripe, "d", peers_but("d"))
            assert ask.peer.node_id == old and not ask.may_fetch


def test_nodes_that_cannot_fetch_are_nobodys_home():
    asks = whom_to_ask(BLOB, 7, "a", peers_but("a", can_fetch=False))
    assert len(asks) == 1 and not asks[0].may_fetch
    assert whom_to_ask(BLOB, 7, "a", []) == ()
    assert home_of(BLOB, 7, []) is None


def test_neighbours_in_the_source_are_in_one_stripe():
    def chunk(offset: int) -> Chunk:
        return Chunk(0, 0, 1, b"", offset, 1 << 20)

    assert chunk(0).stripe == chunk(3 << 20).stripe != chunk(4 << 20).stripe
