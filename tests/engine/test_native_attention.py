"""The native attention beside a textbook one in float64, and a token's bits in any company."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch

from tests.support.native import INSTRUCTION_SETS, native
from worker.kernels.native import library

pytestmark = native
EPSILON = 1e-6
PART_BORDERS = (1, 15, 16, 17, 127, 128, 129, 255, 256, 257)


@pytest.fixture(autouse=True, params=[1, pytest.param(2, marks=pytest.mark.real)])
def threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.param)


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    library.use_instruction_set(request.param)
    yield request.param
    library.use_instruction_set(INSTRUCTION_SETS[0])


@dataclass(frozen=True)
class Layer:
    """What one layer's attention is like."""

    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    block_size: int = 16
    run: int = 4  # blocks
    is_int8: bool = False
    rotary_dim: int | None = None  # all
    window: int = 0
    softcap: float = 0.0
    has_norms: bool = False

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def norms(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not self.has_norms:
            return None, None
        return random_numbers(self.head_dim, seed=1) + 1, random_numbers(self.head_dim, seed=2) + 1

    def rope(self, positions: int) -> torch.Tensor:
        """float32 [positions, rotary_dim]: cosines, then sines"""
        columns = self.rotary_dim or self.head_dim
        frequencies = 1e4 ** -(torch.arange(0, columns, 2).double() / columns)
        angles = torch.outer(torch.arange(positions).double(), frequencies)
        return torch.cat((angles.cos(), angles.sin()), 1).float()


class Cache:
    """A pool full of garbage, of which sequences own scattered blocks."""

    def __init__(
        self, layer: Layer, lengths: Sequence[int], *, garbage: int = 0x7F, seed: int = 0
    ) -> None:
        """`garbage` fills the pool: bytes of 0x7F are the largest numbers, in every format."""
        most_blocks = -(-max(lengths) // layer.block_size)
        runs = -(-(len(lengths) * most_blocks + 2) // layer.run)
        size = torch.ops.firstlight.kv_block_bytes(layer.block_size, layer.head_dim, layer.is_int8)
        # One of two layers: a run's layers lie side by side.
        shape = (runs, 2, layer.kv_heads, layer.run, size)
        self.pool = torch.full(shape, garbage, dtype=torch.uint8)[:, 1]
        order = torch.randperm(runs * layer.run, generator=torch.Generator().manual_seed(seed))
        used = order[: len(lengths) * most_blocks]
        self.tables = used.view(len(lengths), most_blocks).int()
        self.layer = layer
        self.rope = layer.rope(max(lengths) + 3)

    def attend(
        self, qkv: torch.Tensor, lanes: Sequence[int], counts: Sequence[int], ends: Sequence[int]
    ) -> torch.Tensor:
        layer = self.layer
        attended: torch.Tensor = torch.ops.firstlight.attend(
            qkv,
            self.pool,
            self.tables,
            torch.tensor(lanes, dtype=torch.int32),
            torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
            torch.tensor(ends, dtype=torch.int32),
            self.rope,
            *layer.norms(),
            EPSILON,
            layer.scale,
            layer.softcap,
            layer.window,
            layer.heads,
            layer.kv_heads,
            layer.head_dim,
            layer.block_size,
            layer.is_int8,
        )
        return attended

    def run(self, sequences: Sequence[torch.Tensor], chunk: Callable[[], int]) -> torch.Tensor:
        """Computes whole sequences in steps of chunks: all their tokens, one below the other."""
        chance = random.Random(0)
        pieces: list[list[torch.Tensor]] = [[] for _ in sequences]
        done = [0] * len(sequences)
        while waiting := [i for i, each in enumerate(sequences) if done[i] < len(each)]:
            lanes = chance.sample(waiting, len(waiting))
            counts = [min(chunk(), len(sequences[i]) - done[i]) for i in lanes]
            tokens = [
                sequences[i][done[i] : done[i] + count]
                for i, count in zip(lanes, counts, strict=True)
            ]
            for i, count in zip(lanes, counts, strict=True):
                done[i] += count
            attended = self.attend(torch.cat(tokens), lanes, counts, [done[i] for i in lanes])
            for i, piece in zip(lanes, attended.split(counts), strict=True):
                pieces[i].append(piece)
        return torch.cat([piece for each in pieces for piece in each])


def random_numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sequences_of(layer: Layer, lengths: Sequence[int]) -> list[torch.Tensor]:
    return [random_numbers(length, layer.width, seed=i) for i, length in enumerate(lengths)]


def all_at_once() -> int:
    return 1_000_000


def one_by_one() -> int:
    return 1


def mixed() -> Callable[[], int]:
    chance = random.Random(1)
    return lambda: chance.choice([1, 1, 2, 5, 17, 64, 100])


def textbook(layer: Layer, qkv: torch.Tensor) -> torch.Tensor:
    """One sequence's dense attention in float64: [tokens, heads * head_dim]"""
    tokens = len(qkv)
    heads = qkv.double().view(tokens, -1, layer.head_dim)
    query, key, value = heads.split((layer.heads, layer.kv_heads, layer.kv_heads), 1)
    query_norm, key_norm = layer.norms()
    rope = layer.rope(tokens).double()
    query = _rotated(_normed(query, query_norm), rope)
    key = _rotated(_normed(key, key_norm), rope).repeat_interleave(
        query.shape[1] // layer.kv_heads, 1
    )
    value = value.repeat_interleave(query.shape[1] // layer.kv_heads, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * layer.scale
    if layer.softcap:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    is_hidden = distance < 0
    if layer.window:
        is_hidden |= distance >= layer.window
    weights = scores.masked_fill(is_hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


def _normed(heads: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    if weight is None:
        return heads
    return heads * (heads.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * weight


def _rotated(heads: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    half = rope.shape[1] // 2
    cos, sin = rope[:, None, :half], rope[:, None, half:]
    x, y, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat((x * cos - y * sin, y * cos + x * sin, rest), -1)


def assert_near(layer: Layer, got: torch.Tensor, sequences: Sequence[torch.Tensor]) -> None:
    exact = torch.cat([textbook(layer, each) for each in sequences])
    error = (got.double() - exact).norm() / exact.norm()
    assert error < (0.012 if layer.is_int8 else 0.005), float(error)


LAYERS = [
    Layer(),
    Layer(is_int8=True, block_size=32, run=1),
    Layer(heads=4, kv_heads=4, head_dim=8, block_size=64, run=8),
    Layer(heads=8, kv_heads=1, head_dim=16, softcap=20.0),
    Layer(heads=14, kv_heads=2, block_size=32, window=100, is_int8=True),
    Layer(heads=6, kv_heads=2, head_dim=80, rotary_dim=32, block_size=64),
    Layer(heads=4, kv_heads=2, head_dim=96, window=7),
    Layer(heads=8, kv_heads=2, head_dim=128, has_norms=True, block_size=32),
    Layer(heads=4, kv_heads=1, head_dim=256, softcap=50.0, window=130, has_norms=True),
    Layer(heads=2, kv_heads=2, head_dim=24, rotary_dim=6, is_int8=True, has_norms=True),
    Layer(heads=71, kv_heads=1, head_dim=16, block_size=64),
]


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_it_is_the_textbooks_attention_in_whichever_chunks(
    layer: Layer, instruction_set: str
) -> None:
    lengths = (130, 1, 17, 257)
    sequences = sequences_of(layer, lengths)
    whole = Cache(layer, lengths).run(sequences, all_at_once)
    assert_near(layer, whole, sequences)
    assert torch.equal(Cache(layer, lengths, seed=1).run(sequences, mixed()), whole)


@pytest.mark.parametrize("is_int8", [False, True])
def test_a_tokens_bits_are_the_same_alone_and_across_the_borders_of_parts(
    is_int8: bool, instruction_set: str
) -> None:
    layer = Layer(heads=6, kv_heads=2, head_dim=32, is_int8=is_int8)
    sequences = sequences_of(layer, PART_BORDERS)
    together = Cache(layer, PART_BORDERS).run(sequences, one_by_one)
    alone = torch.cat([
        Cache(layer, [len(each)], garbage=0, seed=2).run([each], all_at_once)
        for each in sequences
    ])  # fmt: skip
    assert torch.equal(together, alone)
    assert_near(layer, alone, sequences)


@pytest.mark.parametrize("window", [0, 300])
def test_a_long_context_is_the_same_by_decode_by_chunks_and_by_drafts(window: int) -> None:
    layer = Layer(window=window)
    (sequence,) = sequences_of(layer, [1500])
    cache = Cache(layer, [1500])
    whole = cache.run([sequence], all_at_once)
    assert_near(layer, whole, [sequence])
    for end, count in [(1025, 1), (1500, 1), (1500, 4), (1100, 256), (1024, 1), (1280, 8)]:
        again = cache.attend(sequence[end - count : end], [0], [count], [end])
        assert torch.equal(again, whole[end - count : end]), (end, count)


@pytest.mark.real  # a parallel region: its threads would not survive the forks of other tests
def test_a_tokens_bits_are_the_same_on_any_number_of_threads() -> None:
    layer = Layer()
    lengths = (1500, 300, 1)
    sequences = sequences_of(layer, lengths)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        cache = Cache(layer, lengths)
        whole = cache.run(sequences, all_at_once)
        last = torch.cat([each[-1:] for each in sequences])
        results.append((whole, cache.attend(last, [0, 1, 2], [1, 1, 1], lengths)))
    for whole, decoded in results:
        assert torch.equal(whole, results[0][0])
        assert torch.equal(decoded, whole[[1499, 1799, 1800]])


@pytest.mark.real
@pytest.mark.parametrize("is_int8", [False, True])
def test_who_decodes_finds_its_own_token_on_any_number_of_threads(is_int8: bool) -> None:
    layer = Layer(heads=4, kv_heads=2, head_dim=32, is_int8=is_int8)
    lengths = (3000, *range(20, 300, 10))  # one is divided among threads, most are not
    sequences = sequences_of(layer, lengths)
    ends = torch.tensor(lengths).cumsum(0) - 1
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        cache = Cache(layer, lengths)
        whole = Cache(layer, lengths).run(sequences, all_at_once)
        cache.run([each[:-1] for each in sequences], all_at_once)
        last = torch.cat([each[-1:] for each in sequences])
        decoded = cache.attend(last, range(len(lengths)), [1] * len(lengths), lengths)
        assert torch.equal(decoded, whole[ends]), threads


@pytest.mark.parametrize("is_int8", [False, True])
def test_what_is_not_finite_stays_with_its_own_sequence(
    is_int8: bool, instruction_set: str
) -> None:
    layer = Layer(is_int8=is_int8)
    healthy, sick = sequences_of(layer, [60, 60])
    alone = Cache(layer, [60]).run([healthy], all_at_once)
    sick[::3] = torch.nan
    sick[1::3, ::2], sick[2::3, ::2] = torch.inf, -1e38

    cache = Cache(layer, [60, 60])
    together = cache.run([sick, healthy], mixed())
    assert torch.equal(together[60:], alone)

    # Whoever gets the sick sequence's blocks next does not notice, even where it writes less.
    assert torch.equal(cache.run([healthy[:37]], mixed()), alone[:37])


def test_a_rejected_draft_leaves_nothing_behind() -> None:
    layer = Layer()
    (sequence,) = sequences_of(layer, [50])
    expected = Cache(layer, [60]).run([sequence], all_at_once)

    cache = Cache(layer, [60])
    cache.attend(sequence[:40], [0], [40], [40])
    draft = torch.full((8, layer.width), torch.nan)
    cache.attend(torch.cat((sequence[40:41], draft)), [0], [9], [49])
    assert torch.equal(cache.attend(sequence[41:42], [0], [1], [42]), expected[41:42])
    assert torch.equal(cache.attend(sequence[42:], [0], [8], [50]), expected[42:])


def test_a_step_of_no_tokens_is_empty() -> None:
    layer = Layer()
    cache = Cache(layer, [16])
    assert cache.attend(torch.empty(0, layer.width), [], [], []).shape == (0, 9 * 64)
    (sequence,) = sequences_of(layer, [3])
    got = cache.attend(sequence, [0, 0], [0, 3], [0, 3])
    assert torch.equal(got, Cache(layer, [16]).attend(sequence, [0], [3], [3]))


def test_the_pools_bytes_are_those_of_its_numbers() -> None:
    size = torch.ops.firstlight.kv_block_bytes
    assert size(16, 64, False) == 2 * 16 * 64 * 2
    assert size(64, 128, True) == 2 * 64 * (128 + 4)
    assert size(32, 24, False) == 2 * 32 * 32 * 2  # whole vectors of 16


def test_a_wrong_call_raises() -> None:
    layer = Layer()
    token = random_numbers(1, layer.width, seed=0)

    def cache() -> Cache:
        return Cache(layer, [32])

    with pytest.raises(RuntimeError, match="room for"):
        cache().attend(token, [0], [1], [33])
    with pytest.raises(RuntimeError, match="ends at 0"):
        cache().attend(token, [0], [1], [0])
    with pytest.raises(RuntimeError, match="no table"):
        cache().attend(token, [1], [1], [1])
    with pytest.raises(RuntimeError, match="number of tokens"):
        cache().attend(token, [0], [2], [2])
    with pytest.raises(RuntimeError, match="columns"):
        cache().attend(token[:, 1:].contiguous(), [0], [1], [1])
    with pytest.raises(RuntimeError, match="contiguous"):
        cache().attend(token.double(), [0], [1], [1])
    strange = cache()
    strange.tables[0, 1] = 4
    with pytest.raises(RuntimeError, match="block 4"):
        strange.attend(token, [0], [1], [17])
    short = cache()
    short.rope = layer.rope(8)
    with pytest.raises(RuntimeError, match="room for 8"):
        short.attend(token, [0], [1], [9])
    small = cache()
    small.pool = small.pool[..., 1:]
    with pytest.raises(RuntimeError, match="pool"):
        small.attend(token, [0], [1], [1])
    uneven = Cache(replace(layer, run=3), [32])
    with pytest.raises(RuntimeError, match="power of two"):
        uneven.attend(token, [0], [1], [1])
    for block_size, head_dim in [(8, 64), (16, 20), (16, 264), (16, 0)]:
        with pytest.raises(RuntimeError, match="must be"):
            torch.ops.firstlight.kv_block_bytes(block_size, head_dim, False)
