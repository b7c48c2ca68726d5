from collections import Counter

from snapshotter.blob.tally import Tallies, Tally
from snapshotter.index.chunk_table import Chunk


def chunk(index: int) -> Chunk:
    """A hundred bytes, which travel as ten."""
    return Chunk(index, index * 100, 100, bytes(32), index * 10, 10)


def test_bytes_are_counted_once_and_by_where_they_came_from():
    tally = Tally.of(["base"], now=0)
    for index in (1, 2, 3, 3):
        tally.touch("base", chunk(index))
    tally.touch("another", chunk(4))
    tally.land("base", chunk(1), "origin", asked_at=1, now=2)
    tally.land("base", chunk(2), "peer", asked_at=1, now=2)
    tally.land("base", chunk(3), "here", asked_at=1, now=2)
    tally.land("base", chunk(5), "origin", asked_at=1, now=2)
    tally.land("another", chunk(4), "origin", asked_at=1, now=2)

    # what travelled: chunk 3 was in another blob of this node, and nobody has read 5 yet
    assert tally.came() == Counter(origin=20, peer=100, cache=100)


def test_time_counts_once_in_which_several_were_on_their_way():
    tally = Tally.of(["base"], now=10)
    for index, (asked_at, landed_at) in enumerate([(14, 15), (8, 12), (11, 13), (14.5, 16)]):
        tally.land("base", chunk(index), "origin", asked_at=asked_at, now=landed_at)

    assert tally.seconds() == 3 + 2  # from 10, when it began, to 13; from 14 to 16


def test_a_container_that_follows_its_pull_counts_what_came_since_that():
    tallies = Tallies(same_s=5, most_s=600)
    tallies.pull("image", ["base"], now=0)
    tallies.open("base", now=8)
    tallies.land("base", chunk(1), "origin", asked_at=8, now=9)

    tallies.start("first", "image", ["base"], now=12)
    tallies.start("second", "image", ["base"], now=12)
    tallies.start("first", "image", ["base"], now=13)
    tallies.land("base", chunk(2), "origin", asked_at=13, now=14)

    assert came(tallies, "first") == Counter(origin=20, cache=0)
    assert came(tallies, "second") == Counter(origin=10, cache=0)


def test_a_container_that_comes_later_counts_what_it_reads_itself():
    tallies = Tallies(same_s=5, most_s=600)
    tallies.pull("image", ["base"], now=0)
    tallies.land("base", chunk(1), "origin", asked_at=0, now=1)

    tallies.start("container", "image", ["base"], now=6)
    tallies.touch("base", chunk(1))

    assert came(tallies, "container") == Counter(cache=100)


def test_what_has_started_or_never_will_is_forgotten():
    tallies = Tallies(same_s=5, most_s=600)
    tallies.start("started", "image", ["base"], now=0)
    tallies.start("dead", "image", ["base"], now=0)
    tallies.pull("another", ["base"], now=0)

    tallies.end("started")
    assert tallies.find("started") is None
    tallies.forget_old(now=600)
    assert tallies.find("dead") is not None
    tallies.forget_old(now=601)
    assert not tallies


def came(tallies: Tallies, container: str) -> Counter[str]:
    tally = tallies.find(container)
    assert tally is not None
    return tally.came()
