"""Which blocks of the KV cache are taken, by how many, and what free ones still hold."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

_BLANK, _OTHER = 1, 0
_SHARE_FORGOTTEN_AT_ONCE = 64


class BlockPool:
    """Hands out block ids, in order of their place in memory where it can.

    Blocks that follow each other are read as one slice by the attention, so callers say where
    they would like to go on.

    What a block holds may get a name. A block with a name can be taken by several, and keeps name
    and content when it is free, until blank ones have run out: then those that were free for
    longest are made blank, a 64th of the pool at once, so that some of them are neighbours.
    """

    def __init__(self, total_blocks: int, *, block_size: int) -> None:
        self.total_blocks = total_blocks
        self.block_size = block_size
        self._state = bytearray([_BLANK]) * total_blocks
        self._num_blank = total_blocks
        self._takers = [0] * total_blocks
        self._names: list[bytes | None] = [None] * total_blocks
        self._by_name: dict[bytes, int] = {}
        self._remembering: OrderedDict[int, None] = OrderedDict()  # free for longest first

    @property
    def free_blocks(self) -> int:
        return self._num_blank + len(self._remembering)

    def is_free(self, block: int) -> bool:
        return not self._takers[block]

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int, *, near: int) -> list[int] | None:
        """`count` blocks: the first blank ones from `near` on, then from the beginning.

        None, and nothing taken, when there are fewer.
        """
        if count > self.free_blocks:
            return None
        if count > self._num_blank:
            self._forget(
                max(count - self._num_blank, self.total_blocks // _SHARE_FORGOTTEN_AT_ONCE)
            )
        blocks = []
        position = near
        for _ in range(count):
            block = self._state.find(_BLANK, position)
            if block < 0:
                block = self._state.find(_BLANK)
            self._state[block] = _OTHER
            self._takers[block] = 1
            blocks.append(block)
            position = block + 1
        self._num_blank -= count
        return blocks

    def find(self, name: bytes) -> int | None:
        """The block, taken or free, that holds what was given this name."""
        return self._by_name.get(name)

    def keep(self, block: int, name: bytes) -> None:
        """Names what a taken block holds from now on; nothing, if another holds the same."""
        assert self._takers[block] and self._names[block] is None
        if name not in self._by_name:
            self._by_name[name] = block
            self._names[block] = name

    def share(self, blocks: Sequence[int]) -> None:
        """Takes blocks for one more, with what they hold."""
        for block in blocks:
            assert self._names[block] is not None
            if not self._takers[block]:
                del self._remembering[block]
            self._takers[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Takes one sequence's blocks back: its last ones are forgotten before its first."""
        for block in reversed(blocks):
            assert self._takers[block], f"block {block} is freed twice"
            self._takers[block] -= 1
            if self._takers[block]:
                continue
            if self._names[block] is None:
                self._make_blank(block)
            else:
                self._remembering[block] = None

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Asserts that every block is taken by as many as have it in their tables."""
        owners = Counter(block for table in tables for block in table)
        for block in range(self.total_blocks):
            name = self._names[block]
            assert owners[block] == self._takers[block], f"block {block} leaks or is shared"
            assert owners[block] < 2 or name is not None, f"block {block} has two owners"
            is_remembering = not owners[block] and name is not None
            assert is_remembering == (block in self._remembering)
            assert (self._state[block] == _BLANK) == (not owners[block] and name is None)
            assert name is None or self._by_name[name] == block
        assert len(self._by_name) == self.total_blocks - self._names.count(None)
        assert self._num_blank == self._state.count(_BLANK)

    def _forget(self, count: int) -> None:
        for _ in range(min(count, len(self._remembering))):
            block, _ = self._remembering.popitem(last=False)
            name = self._names[block]
            assert name is not None
            del self._by_name[name]
            self._names[block] = None
            self._make_blank(block)

    def _make_blank(self, block: int) -> None:
        self._state[block] = _BLANK
        self._num_blank += 1
