"""Finds blocks that hold a sequence's first tokens already, whoever computed them."""

import secrets
from array import array
from dataclasses import dataclass
from hashlib import blake2b

from worker.engine.block_pool import BlockPool
from worker.engine.sequence import Sequence

_NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class Prefix:
    """Blocks that hold a sequence's beginning, and the name of the next it could use."""

    blocks: list[int]
    wanted: bytes | None


class PrefixCache:
    """Names full blocks after their tokens and all before them, and finds them by these names.

    A name is BLAKE2b, keyed with a secret of this process, of the name of the block before and the
    block's tokens; the first follows the name of the tenant. So nobody can make two prompts that
    have one name, and nobody finds, or learns from the time it takes, what another tenant asked.
    """

    def __init__(
        self, pool: BlockPool, *, is_enabled: bool = True, secret: bytes | None = None
    ) -> None:
        self._pool = pool
        self._is_enabled = is_enabled
        self._secret = secrets.token_bytes(32) if secret is None else secret

    def find(self, sequence: Sequence) -> "Prefix":
        """What is known of the sequence's beginning, as far as it need not be computed again."""
        blocks: list[int] = []
        for name in self.names(sequence)[: sequence.num_reusable_tokens // self._pool.block_size]:
            block = self._pool.find(name)
            if block is None:
                return Prefix(blocks, name)
            blocks.append(block)
        return Prefix(blocks, None)

    def keep(self, sequence: Sequence, *, num_computed_before: int) -> None:
        """Names the blocks that have become full since; their tokens are known to be right."""
        size = self._pool.block_size
        full = range(num_computed_before // size, sequence.num_computed_tokens // size)
        if not full or not self._is_enabled:
            return
        names = self.names(sequence)
        for index in full:
            self._pool.keep(sequence.block_table[index], names[index])

    def names(self, sequence: Sequence) -> list[bytes]:
        """Of all blocks that the sequence's tokens fill; none when the cache is off."""
        names, size = sequence.block_names, self._pool.block_size
        if not self._is_enabled:
            return names
        for end in range((len(names) + 1) * size, sequence.num_tokens + 1, size):
            before = names[-1] if names else self._hash(b"tenant", sequence.tenant.encode())
            tokens = array("q", sequence.token_ids[end - size : end]).tobytes()
            names.append(self._hash(b"block", before + tokens))
        return names

    def _hash(self, kind: bytes, content: bytes) -> bytes:
        return blake2b(content, digest_size=_NAME_BYTES, key=self._secret, person=kind).digest()
