"""Block accounting, exactly."""

import pytest

from worker.engine.block_pool import BlockPool


def test_blocks_come_in_order_from_the_place_asked_for() -> None:
    pool = BlockPool(8, block_size=4)
    assert pool.allocate(3, near=2) == [2, 3, 4]
    assert pool.allocate(2, near=3) == [5, 6]
    assert pool.allocate(3, near=6) == [7, 0, 1]
    assert pool.free_blocks == 0


def test_too_many_blocks_take_none() -> None:
    pool = BlockPool(4, block_size=4)
    assert pool.allocate(5, near=0) is None
    assert pool.free_blocks == 4
    assert pool.allocate(0, near=0) == []
    assert pool.allocate(4, near=99) == [0, 1, 2, 3]


def test_freed_blocks_are_handed_out_again() -> None:
    pool = BlockPool(4, block_size=4)
    first = pool.allocate(4, near=0)
    assert first is not None
    pool.free([1, 2])
    pool.check_integrity([[0, 3]])
    assert pool.allocate(2, near=0) == [1, 2]


def test_integrity_notices_leaks_double_owners_and_double_frees() -> None:
    pool = BlockPool(4, block_size=4)
    assert pool.allocate(2, near=0) == [0, 1]
    pool.check_integrity([[0], [1]])
    for tables in ([[0]], [[0, 1], [1]], [[0, 1, 2]]):
        with pytest.raises(AssertionError):
            pool.check_integrity(tables)
    pool.free([0])
    with pytest.raises(AssertionError):
        pool.free([0])


def test_a_named_block_keeps_what_it_holds_until_blank_ones_have_run_out() -> None:
    pool = BlockPool(4, block_size=4)
    assert pool.allocate(2, near=0) == [0, 1]
    pool.keep(0, b"first")
    pool.free([0, 1])
    assert pool.free_blocks == 4
    assert pool.allocate(3, near=0) == [1, 2, 3]
    assert pool.find(b"first") == 0
    pool.check_integrity([[1, 2, 3]])

    assert pool.allocate(1, near=3) == [0]

    assert pool.find(b"first") is None


def test_what_was_unused_for_longest_is_forgotten_first_and_of_one_sequence_its_end() -> None:
    pool = BlockPool(6, block_size=4)
    for name in (b"a", b"b"):
        blocks = pool.allocate(3, near=0)
        assert blocks is not None
        for index, block in enumerate(blocks):
            pool.keep(block, name + b"%d" % index)
    pool.free([0, 1, 2])
    pool.free([3, 4, 5])
    pool.share([0])  # used again, and free again: now the youngest
    pool.free([0])

    forgotten = []
    for _ in range(6):
        before = {name for name in (b"a0", b"a1", b"a2", b"b0", b"b1", b"b2") if pool.find(name)
                  is not None}  # fmt: skip
        pool.allocate(1, near=0)
        forgotten += [name for name in before if pool.find(name) is None]

    assert forgotten == [b"a2", b"a1", b"b2", b"b1", b"b0", b"a0"]


def test_a_shared_block_is_free_when_the_last_has_given_it_back() -> None:
    pool = BlockPool(4, block_size=4)
    assert pool.allocate(1, near=0) == [0]
    pool.keep(0, b"name")
    pool.share([0])
    pool.free([0])
    pool.check_integrity([[0]])
    assert pool.free_blocks == 3 and not pool.is_free(0)
    pool.free([0])
    assert pool.free_blocks == 4 and pool.is_free(0)


def test_two_blocks_that_hold_the_same_have_one_name() -> None:
    pool = BlockPool(4, block_size=4)
    pool.allocate(2, near=0)
    pool.keep(0, b"name")
    pool.keep(1, b"name")
    assert pool.find(b"name") == 0
    pool.free([1])
    pool.check_integrity([[0]])


def test_a_large_pool_forgets_several_at_once_so_that_new_tables_are_in_order() -> None:
    pool = BlockPool(640, block_size=16)
    blocks = pool.allocate(640, near=0)
    assert blocks is not None
    for block in blocks:
        pool.keep(block, b"%d" % block)
    pool.free(blocks)
    assert [pool.allocate(1, near=0) for _ in range(3)] == [[630], [631], [632]]
    assert pool.find(b"629") == 629
