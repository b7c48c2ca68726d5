import pytest

from infra.errors import Invalid
from worker.parallel.share import Cut, Share, kept_rows, whole

SHAPES = [(9, 3), (8, 8), (8, 4), (8, 2), (8, 1), (12, 3), (32, 8), (6, 2)]


def shares(size: int, heads: int, kv_heads: int) -> list[Share]:
    return [
        Share.of(rank, size, heads=heads, kv_heads=kv_heads, inner=100, vocabulary=49_152)
        for rank in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
def test_every_head_is_computed_once_and_beside_its_key_head(
    size: int, heads: int, kv_heads: int
) -> None:
    ranks = shares(size, heads, kv_heads)

    assert [head for share in ranks for head in share.heads.kept] == list(range(heads))
    for share in ranks:
        needed = [head * kv_heads // heads for head in share.heads.kept]
        own, own_kv = share.heads.kept, share.kv_heads.kept
        assert sorted(set(needed)) == list(own_kv)
        # What the kernels assume: each key head has equally many heads, in order.
        each = len(own) // len(own_kv)
        assert [own_kv.start + place // each for place in range(len(own))] == needed
    for part in ("inner", "vocabulary"):
        cuts: list[Cut] = [getattr(share, part) for share in ranks]
        assert [row for cut in cuts for row in cut.kept] == list(range(cuts[0].total))
        assert max(len(cut.kept) for cut in cuts) - min(len(cut.kept) for cut in cuts) <= 1


def test_smollm2_on_two_and_four() -> None:
    assert [list(share.kv_heads.kept) for share in shares(2, 9, 3)] == [[0], [1, 2]]
    assert [list(share.heads.kept) for share in shares(4, 9, 3)] == [
        [0],
        [1, 2],
        [3, 4, 5],
        [6, 7, 8],
    ]


def test_more_ranks_than_heads_are_refused_with_the_setting_to_change() -> None:
    with pytest.raises(Invalid) as refused:
        shares(4, 2, 1)
    assert refused.value.param == "engine.tensor_parallel"


def test_rows_of_fused_parts_are_kept_each_by_itself() -> None:
    query, key = Cut(4, range(2, 4)).times(8), Cut(2, range(1, 2)).times(8)

    assert kept_rows([query, key, key]) == [range(16, 32), range(40, 48), range(56, 64)]
    assert whole(5).is_whole and not query.is_whole
