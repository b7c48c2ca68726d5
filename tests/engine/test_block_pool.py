"""Block accounting, exactly."""

import pytest

from worker.engine.block_pool import BlockPool


def test_blocks_come_in_order_from_the_place_asked_for() -> None:
    pool = BlockPool(8)
    assert pool.allocate(3, near=2) == [2, 3, 4]
    assert pool.allocate(2, near=3) == [5, 6]
    assert pool.allocate(3, near=6) == [7, 0, 1]
    assert pool.free_blocks == 0


def test_too_many_blocks_take_none() -> None:
    pool = BlockPool(4)
    assert pool.allocate(5, near=0) is None
    assert pool.free_blocks == 4
    assert pool.allocate(0, near=0) == []
    assert pool.allocate(4, near=99) == [0, 1, 2, 3]


def test_freed_blocks_are_handed_out_again() -> None:
    pool = BlockPool(4)
    first = pool.allocate(4, near=0)
    assert first is not None
    pool.free([1, 2])
    pool.check_integrity([[0, 3]])
    assert pool.allocate(2, near=0) == [1, 2]


def test_integrity_notices_leaks_double_owners_and_double_frees() -> None:
    pool = BlockPool(4)
    assert pool.allocate(2, near=0) == [0, 1]
    pool.check_integrity([[0], [1]])
    for tables in ([[0]], [[0, 1], [1]], [[0, 1, 2]]):
        with pytest.raises(AssertionError):
            pool.check_integrity(tables)
    pool.free([0])
    with pytest.raises(AssertionError):
        pool.free([0])
