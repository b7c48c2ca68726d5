"""Which chunk is read next, decided without a thread."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.sources.chunks import CHUNK_BYTES, FIRST_BYTES, Chunk, ChunkBoard, Task, plan_chunks

SIZES = (FIRST_BYTES + 2 * CHUNK_BYTES, 5, 0, FIRST_BYTES + 1)


def board(*sizes: int, hedge_s: float = 1.0) -> tuple[ChunkBoard, tuple[Chunk, ...]]:
    chunks = plan_chunks(sizes or SIZES)
    return ChunkBoard(chunks, hedge_s=hedge_s), chunks


def taken(board: ChunkBoard, now: float = 0.0) -> list[int]:
    """Everything that is to be read at that moment, in order."""
    indices = []
    while (task := board.next(now)) is not None:
        assert not task.is_hedge
        indices.append(task.chunk.index)
    return indices


def test_files_are_cut_into_a_small_beginning_and_equal_chunks() -> None:
    assert [(it.file, it.number, it.offset, it.length) for it in plan_chunks(SIZES)] == [
        (0, 0, 0, FIRST_BYTES),
        (0, 1, FIRST_BYTES, CHUNK_BYTES),
        (0, 2, FIRST_BYTES + CHUNK_BYTES, CHUNK_BYTES),
        (1, 0, 0, 5),
        (3, 0, 0, FIRST_BYTES),
        (3, 1, FIRST_BYTES, 1),
    ]


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=4))
def test_chunks_cover_every_byte_once(sizes: list[int]) -> None:
    ends = [0] * len(sizes)
    for chunk in plan_chunks(sizes):
        assert chunk.offset == ends[chunk.file] and chunk.length > 0
        ends[chunk.file] = chunk.stop
    assert ends == sizes


def test_beginnings_come_first_then_bytes_in_order() -> None:
    assert taken(board()[0]) == [0, 3, 4, 1, 2, 5]


def test_what_somebody_waits_for_comes_next() -> None:
    chunks_of_one, _ = board(FIRST_BYTES + 9 * CHUNK_BYTES)
    assert chunks_of_one.next(0) is not None
    chunks_of_one.want(0, FIRST_BYTES + 4 * CHUNK_BYTES - 1, FIRST_BYTES + 5 * CHUNK_BYTES)
    assert taken(chunks_of_one) == [4, 5, 1, 2, 3, 6, 7, 8, 9]


def test_bytes_are_there_when_all_their_chunks_are() -> None:
    it, chunks = board()
    taken(it)
    it.arrived(chunks[0], 1)
    it.arrived(chunks[2], 1)
    edge = FIRST_BYTES + CHUNK_BYTES
    assert it.has(0, 0, FIRST_BYTES) and it.has(0, edge, edge + 9) and it.has(2, 0, 0)
    assert not it.has(0, FIRST_BYTES - 1, FIRST_BYTES + 1) and not it.has(0, edge - 1, edge)
    assert it.has(0, edge, edge)
    for chunk in chunks:
        it.arrived(chunk, 2)
    assert it.is_over and it.has(0, 0, SIZES[0])


def test_a_chunk_that_takes_four_times_the_median_is_hedged_once() -> None:
    it, chunks = board(*[5] * 6)
    taken(it)
    for chunk in chunks[:4]:
        it.arrived(chunk, 2.0)
    assert it.next(8.0) is None
    assert it.next(8.1) == Task(chunks[4], is_hedge=True)
    assert it.next(8.1) == Task(chunks[5], is_hedge=True)
    assert it.next(99) is None
    it.hedge_failed(chunks[4])
    assert it.next(99) == Task(chunks[4], is_hedge=True)
    it.arrived(chunks[4], 99)
    it.hedge_failed(chunks[4])
    assert it.next(99) is None


@pytest.mark.parametrize("hedge_s", [1.0, 3.0])
def test_nothing_is_hedged_sooner_than_is_worth_it(hedge_s: float) -> None:
    it, chunks = board(5, 5, hedge_s=hedge_s)
    taken(it)
    it.arrived(chunks[0], 0.001)
    assert it.next(hedge_s) is None
    assert it.next(hedge_s + 0.01) == Task(chunks[1], is_hedge=True)
