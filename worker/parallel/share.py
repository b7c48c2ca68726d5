"""What each of several processes computes of every layer (Shoeybi et al. 2019), as ranges."""

from collections.abc import Iterable
from dataclasses import dataclass

from infra.errors import Invalid


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of `total` rows or columns of a weight that one process has."""

    total: int
    kept: range

    @property
    def is_whole(self) -> bool:
        return len(self.kept) == self.total

    def times(self, width: int) -> "Cut":
        """The same part where each item is `width` wide."""
        return Cut(self.total * width, range(self.kept.start * width, self.kept.stop * width))


def whole(total: int) -> Cut:
    """All of it."""
    return Cut(total, range(total))


def kept_rows(cuts: Iterable[Cut]) -> list[range]:
    """The kept rows of several parts that lie one below the other."""
    ranges, begin = [], 0
    for cut in cuts:
        ranges.append(range(begin + cut.kept.start, begin + cut.kept.stop))
        begin += cut.total
    return ranges


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's heads, feed-forward channels and vocabulary.

    Heads that share a key head stay together, as long as there are key heads enough; else a key
    head goes to several ranks, and its heads are divided among them. Parts may differ by one.
    """

    heads: Cut
    kv_heads: Cut
    inner: Cut
    vocabulary: Cut

    @classmethod
    def of(
        cls, rank: int, size: int, *, heads: int, kv_heads: int, inner: int, vocabulary: int
    ) -> "Share":
        """Raises Invalid for more ranks than heads or channels."""
        own, own_kv = _heads(rank, size, heads=heads, kv_heads=kv_heads)
        share = cls(
            Cut(heads, own),
            Cut(kv_heads, own_kv),
            Cut(inner, _even(rank, size, inner)),
            Cut(vocabulary, _even(rank, size, vocabulary)),
        )
        if not (own and share.inner.kept and share.vocabulary.kept):
            raise Invalid(
                f"the model cannot be divided among {size} processes: it has {heads} heads, "
                f"{kv_heads} of them with keys",
                hint="lower engine.tensor_parallel",
                param="engine.tensor_parallel",
            )
        return share


def _even(rank: int, size: int, count: int) -> range:
    return range(rank * count // size, (rank + 1) * count // size)


def _heads(rank: int, size: int, *, heads: int, kv_heads: int) -> tuple[range, range]:
    group = heads // kv_heads
    if size <= kv_heads:
        own_kv = _even(rank, size, kv_heads)
        return range(own_kv.start * group, own_kv.stop * group), own_kv
    key_head = rank * kv_heads // size
    peers = [peer for peer in range(size) if peer * kv_heads // size == key_head]
    own = _even(peers.index(rank), len(peers), group)
    first = key_head * group
    return range(first + own.start, first + own.stop), range(key_head, key_head + 1)
