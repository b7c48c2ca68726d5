"""Which blocks of the KV cache are free."""

from collections import Counter
from collections.abc import Iterable, Sequence

_FREE, _TAKEN = 1, 0


class BlockPool:
    """Hands out block ids, in order of their place in memory where it can.

    Blocks that follow each other are read as one slice by the attention, so callers say where
    they would like to go on.
    """

    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = total_blocks
        self.free_blocks = total_blocks
        self._state = bytearray([_FREE]) * total_blocks

    def allocate(self, count: int, *, near: int) -> list[int] | None:
        """`count` blocks: the first free ones from `near` on, then from the beginning.

        None, and nothing taken, when there are fewer.
        """
        if count > self.free_blocks:
            return None
        blocks = []
        position = near
        for _ in range(count):
            block = self._state.find(_FREE, position)
            if block < 0:
                block = self._state.find(_FREE)
            self._state[block] = _TAKEN
            blocks.append(block)
            position = block + 1
        self.free_blocks -= count
        return blocks

    def free(self, blocks: Sequence[int]) -> None:
        """Takes blocks back."""
        for block in blocks:
            assert self._state[block] == _TAKEN, f"block {block} is freed twice"
            self._state[block] = _FREE
        self.free_blocks += len(blocks)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Asserts that every block is free or in exactly one of the tables."""
        owners = Counter(block for table in tables for block in table)
        assert all(count == 1 for count in owners.values()), "a block has two owners"
        for block in range(self.total_blocks):
            is_owned = block in owners
            assert is_owned == (self._state[block] == _TAKEN), f"block {block} leaks or is shared"
        assert self.free_blocks == self.total_blocks - len(owners)
