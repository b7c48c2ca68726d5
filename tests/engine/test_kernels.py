"""The kernels give a token the same bits in any company, and about what a textbook gives."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it

from infra.contracts.model_spec import EngineSettings
from infra.errors import DependencyMissing
from tests.engine.test_transformers import PROMPT
from tests.engine.test_transformers import our_logits as logits_of
from tests.engine.tiny import load_model, write_model
from worker.kernels.factory import choose_kernels
from worker.kernels.port import AttentionLayer, CacheShape, Gate, Norm, Span
from worker.kernels.torch_attention import TorchKVCache
from worker.kernels.torch_kernels import TorchKernels, padded
from worker.layers.rotary import Rotary
from worker.models.rope import rotary_frequencies
from worker.models.rope_config import LinearScaling, Llama3Scaling, Rope

KERNELS = {dtype: TorchKernels(dtype) for dtype in (torch.bfloat16, torch.float32)}
BLOCK = 16
FORMATS = [torch.bfloat16, torch.float32]
SHAPES = [(3, 3, 64), (1, 4, 16), (4, 1, 64), (2, 4, 128), (2, 2, 8)]  # kv_heads, group, head_dim


@pytest.fixture(autouse=True, params=[1, pytest.param(2, marks=pytest.mark.real)])
def threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.param)


def random_rows(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("outputs", "inputs"), [(576, 576), (192, 576), (576, 1536), (256, 2048), (16, 32)]
)
def test_a_linear_layer_gives_a_row_the_same_bits_among_any_number(
    dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    weight = random_rows(outputs, inputs, dtype, seed=1) * 0.05
    bias = random_rows(1, outputs, dtype, seed=2)[0]
    x = random_rows(320, inputs, dtype)
    whole = KERNELS[dtype].linear(x, weight, bias)
    for rows in [*range(1, 20), 31, 32, 33, 48, 63, 64, 65, 127, 128, 200, 256, 257]:
        assert torch.equal(KERNELS[dtype].linear(x[:rows], weight, bias), whole[:rows]), rows
        assert torch.equal(KERNELS[dtype].linear(x[-rows:], weight, bias), whole[-rows:]), rows
    torch.testing.assert_close(
        whole, F.linear(x.double(), weight.double(), bias.double()).to(dtype)
    )


def test_products_have_few_heights_and_never_one_row() -> None:
    """oneDNN keeps a compiled kernel for each."""
    heights = {padded(torch.ones(rows, 3)).shape[0] for rows in range(1, 513)}
    assert len(heights) < 60 and min(heights) == 2
    assert padded(torch.ones(33, 3)).sum() == 99


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("inner", [1536, 96, 40])
def test_gates_and_norms_give_a_row_the_same_bits_among_any_number(
    dtype: torch.dtype, inner: int
) -> None:
    kernels = KERNELS[dtype]
    x = random_rows(300, 2 * inner, dtype) * 3
    weight = random_rows(1, 2 * inner, torch.float32, seed=2)[0]
    norm = Norm(weight, 1e-5)
    gated = {gate: kernels.gated(x, gate) for gate in Gate}
    normed = kernels.norm(x, norm)
    for rows in (1, 2, 3, 7, 16, 22, 65, 150, 299):
        for part in (slice(0, rows), slice(300 - rows, 300)):
            for gate in Gate:
                assert torch.equal(kernels.gated(x[part], gate), gated[gate][part]), rows
            assert torch.equal(kernels.norm(x[part], norm), normed[part]), rows
    exact = x.double()
    scale = (exact.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(normed, (exact * scale * weight.double()).to(dtype))
    gates, up = exact.chunk(2, -1)
    for gate, activated in {
        Gate.SILU: gates * gates.sigmoid(),
        Gate.GELU_TANH: F.gelu(gates, approximate="tanh"),
    }.items():
        torch.testing.assert_close(gated[gate], (activated * up).to(dtype), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("gate", Gate)
def test_every_bfloat16_is_gated_the_same_alone_and_among_others(gate: Gate) -> None:
    kernels = KERNELS[torch.bfloat16]
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = numbers[numbers.isfinite()]

    def gated(row: torch.Tensor) -> torch.Tensor:
        return kernels.gated(torch.cat((row, torch.ones_like(row)))[None], gate)[0]

    together = gated(numbers)
    shifted = gated(torch.cat((torch.ones(1, dtype=torch.bfloat16), numbers[:-1])))
    assert torch.equal(together[:-1], shifted[1:])
    for index in range(0, len(numbers), 97):
        assert torch.equal(gated(numbers[index : index + 1])[0], together[index])


def test_a_product_is_of_all_parts_after_its_norm_and_beside_its_residual() -> None:
    kernels = KERNELS[torch.float32]
    weights = [random_rows(rows, 24, torch.float32, seed=rows) for rows in (8, 6)]
    biases = [random_rows(1, rows, torch.float32, seed=9)[0] for rows in (8, 6)]
    product = kernels.product(weights, [biases[0], None])
    x = random_rows(3, 24, torch.float32)
    residual = random_rows(3, 14, torch.float32, seed=4)
    expected = torch.cat((x @ weights[0].T + biases[0], x @ weights[1].T), 1)
    torch.testing.assert_close(product(x, residual=residual), expected + residual)
    gated = F.silu(expected[:, :7]) * expected[:, 7:]
    torch.testing.assert_close(product(x, gate=Gate.SILU), gated)
    norm = Norm(random_rows(1, 24, torch.float32, seed=5)[0], 1e-6)
    normed = F.rms_norm(x, (24,), norm.weight, 1e-6)
    torch.testing.assert_close(product(x, prologue=norm)[:, 8:], normed @ weights[1].T)


class Attended:
    """One sequence's queries, keys and values, to be computed in any pieces."""

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, tokens: int, *, seed: int = 0
    ) -> None:
        self.kv_heads, self.group, self.head_dim = shape
        self.dtype = dtype
        heads = self.kv_heads * self.group
        self.query = random_rows(tokens, heads * self.head_dim, dtype, seed * 3)
        self.key = random_rows(tokens, self.kv_heads * self.head_dim, dtype, seed * 3 + 1)
        self.value = random_rows(tokens, self.kv_heads * self.head_dim, dtype, seed * 3 + 2)
        self.rotary = Rotary(rotary_frequencies(Rope(1e4, None), self.head_dim))

    def cache(self, blocks: int = 192) -> TorchKVCache:
        return KERNELS[self.dtype].allocate_cache(
            CacheShape(
                num_layers=1,
                num_heads=self.kv_heads * self.group,
                num_kv_heads=self.kv_heads,
                head_dim=self.head_dim,
                num_blocks=blocks,
                block_size=BLOCK,
                dtype=self.dtype,
            )
        )

    def attend(
        self, cache: TorchKVCache, first: int, count: int, table: Sequence[int]
    ) -> torch.Tensor:
        return attend_together(cache, [(self, first, count, table)])

    def textbook(self) -> torch.Tensor:
        """Dense attention in float64."""
        tokens, heads = len(self.query), self.kv_heads * self.group
        cos, sin = self.rotary.up_to(tokens)[:tokens, None].chunk(2, -1)

        def rotated(x: torch.Tensor, count: int) -> torch.Tensor:
            x = x.view(tokens, count, self.head_dim).double()
            first, second = x.chunk(2, -1)
            turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
            return turned.to(self.dtype).double().transpose(0, 1)

        query, key = rotated(self.query, heads), rotated(self.key, self.kv_heads)
        value = self.value.view(tokens, self.kv_heads, -1).double().transpose(0, 1)
        key, value = (each.repeat_interleave(self.group, 0) for each in (key, value))
        scores = query @ key.transpose(1, 2) / self.head_dim**0.5
        scores += torch.full((tokens, tokens), -torch.inf).triu(1)
        attended: torch.Tensor = scores.softmax(-1) @ value
        return attended.transpose(0, 1).flatten(1).to(self.dtype)


def attend_together(
    cache: TorchKVCache, pieces: Sequence[tuple[Attended, int, int, Sequence[int]]]
) -> torch.Tensor:
    step = cache.lay_out([Span(first, count, table) for _, first, count, table in pieces])
    rows = [
        torch.cat((each.query, each.key, each.value), 1)[first : first + count]
        for each, first, count, _ in pieces
    ]
    sequence = pieces[0][0]
    layer = AttentionLayer(0, scale=sequence.head_dim**-0.5)
    return step.attend(layer, torch.cat(rows), sequence.rotary.up_to(4096))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_gives_a_token_the_same_bits_in_whichever_chunk(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tokens = 1100  # three tiles of keys
    sequence = Attended(shape, dtype, tokens)
    table = range(tokens // BLOCK + 1)
    cache = sequence.cache()
    whole = sequence.attend(cache, 0, tokens, table)
    kept = [layer.clone() for layer in cache.layers]

    chance = random.Random(0)
    for count in [1, 2, 3, 5, 11, 16, 17, 31, 32, 33, 43, 64, 65, 100, 128, 192, 256, 300]:
        first = chance.randrange(tokens - count)
        again = sequence.attend(cache, first, count, table)
        assert torch.equal(again, whole[first : first + count]), (first, count)
    for first in range(0, tokens, 61):
        assert torch.equal(sequence.attend(cache, first, 1, table)[0], whole[first]), first
    assert all(torch.equal(*each) for each in zip(cache.layers, kept, strict=True))

    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(whole, sequence.textbook(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", FORMATS)
def test_attention_gives_the_same_bits_over_scattered_blocks_and_beside_others(
    dtype: torch.dtype,
) -> None:
    sequences = [Attended((3, 3, 64), dtype, 400, seed=seed) for seed in range(3)]
    alone = [each.attend(each.cache(), 0, 400, range(25)) for each in sequences]

    chance = random.Random(1)
    blocks = list(range(192))
    chance.shuffle(blocks)
    tables = [blocks[:25], blocks[25:50], list(range(100, 125))]
    if set(tables[2]) & {*blocks[:50]}:
        tables[2] = blocks[50:75]
    cache = sequences[0].cache()
    _fill_with_garbage(cache)
    done = [0, 0, 0]
    while min(done) < 400:
        pieces = []
        for index in chance.sample(range(3), 3):
            count = min(chance.choice([1, 7, 60]), 400 - done[index])
            if count:
                pieces.append((index, done[index], count))
                done[index] += count
        got = attend_together(
            cache, [(sequences[i], first, count, tables[i]) for i, first, count in pieces]
        )
        begin = 0
        for i, first, count in pieces:
            assert torch.equal(got[begin : begin + count], alone[i][first : first + count])
            begin += count


def _fill_with_garbage(cache: TorchKVCache) -> None:
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape) * 100)


def test_what_is_not_finite_stays_with_its_own_sequence() -> None:
    healthy, sick = (
        Attended((3, 3, 64), torch.bfloat16, 60),
        Attended((3, 3, 64), torch.bfloat16, 60),
    )
    sick.key[3], sick.value[5], sick.value[6] = float("nan"), float("inf"), -float("inf")
    alone = healthy.attend(healthy.cache(), 0, 60, range(4))

    cache = healthy.cache()
    sick.attend(cache, 0, 60, range(4, 8))
    sick.attend(cache, 0, 60, [0, 1, 2, 3])
    assert torch.equal(healthy.attend(cache, 0, 60, range(4)), alone)


def test_the_last_block_of_the_cache_is_as_good_as_any() -> None:
    for dtype in FORMATS:
        sequence = Attended((3, 3, 64), dtype, 16)
        expected = sequence.attend(sequence.cache(), 0, 16, [0])
        assert torch.equal(sequence.attend(sequence.cache(8), 0, 16, [7]), expected)


def test_angles_are_the_same_however_far_the_table_has_grown() -> None:
    frequencies = rotary_frequencies(Rope(1e5, None), 64)
    early, late = Rotary(frequencies), Rotary(frequencies)
    assert late.up_to(5001).shape[0] >= 5001
    assert torch.equal(early.up_to(1024), late.up_to(1024)[:1024])
    torch.testing.assert_close(late.up_to(5001)[5000, :32], (5000 * frequencies).cos())
    torch.testing.assert_close(late.up_to(5001)[5000, 32:], (5000 * frequencies).sin())


def test_scaled_frequencies() -> None:
    plain = rotary_frequencies(Rope(1e4, None), 8)
    torch.testing.assert_close(plain, torch.tensor([1.0, 0.1, 0.01, 0.001]))
    torch.testing.assert_close(rotary_frequencies(Rope(1e4, LinearScaling(4.0)), 8), plain / 4)
    stretched = rotary_frequencies(Rope(1e4, Llama3Scaling(8.0, 1.0, 4.0, 1024)), 8)
    assert stretched[0] == plain[0] and stretched[3] == plain[3] / 8
    assert plain[2] / 8 < stretched[2] < plain[2]


def test_a_gpu_that_is_not_there_is_said_to_be_missing() -> None:
    assert choose_kernels(gpus=0, dtype=torch.float32, head_dim=16).device.type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(DependencyMissing):
            choose_kernels(gpus=1, dtype=torch.float32, head_dim=16)


@pytest.mark.parametrize("head_dim", [20, 264])
def test_heads_of_any_width_are_computed(tmp_path: Path, head_dim: int) -> None:
    folder = write_model(tmp_path, head_dim=head_dim)
    model = load_model(folder)
    exact = logits_of(load_model(folder, EngineSettings(dtype="float32")), PROMPT)

    error = (logits_of(model, PROMPT) - exact).square().mean().sqrt()

    assert model.kernels.name == "torch"
    assert float(error) < 0.03 * float(exact.std())
