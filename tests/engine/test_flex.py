"""The kernels for GPUs, on the CPU: the same functions, not compiled."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from torch.nn.attention.flex_attention import BlockMask

from infra.contracts.model_spec import EngineSettings
from infra.errors import Invalid, SourceInvalid, UnsupportedModel
from tests.engine.flex import CPU, eager, flex_kernels
from tests.engine.test_native_attention import (
    LAYERS,
    Cache,
    Layer,
    all_at_once,
    mixed,
    sequences_of,
    textbook,
)
from tests.engine.tiny import write_model
from worker.kernels import flex_attention
from worker.kernels.flex_attention import Attend, FlexKVCache
from worker.kernels.flex_places import places
from worker.kernels.port import AttentionLayer, CacheShape, Gate, Norm, Span
from worker.kernels.torch_kernels import TorchKernels
from worker.models.config import read_config
from worker.models.registry import model_dtype
from worker.weights.quantized import QuantizedWeight


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class FlexCache(Cache):
    """A pool full of the largest numbers, of which sequences own scattered blocks."""

    def __init__(
        self,
        layer: Layer,
        lengths: Sequence[int],
        *,
        seed: int = 0,
        compile_for: flex_attention.Compile = eager,
    ) -> None:
        most_blocks = -(-max(lengths) // layer.block_size)
        blocks = len(lengths) * most_blocks + 2
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))
        self.own_blocks = order[: len(lengths) * most_blocks].view(len(lengths), -1).tolist()
        self.layer = layer
        self.rope = layer.rope(max(lengths) + 3)
        self.cache = FlexKVCache(
            CacheShape(
                num_layers=2,
                num_heads=layer.heads,
                num_kv_heads=layer.kv_heads,
                head_dim=layer.head_dim,
                num_blocks=blocks,
                block_size=layer.block_size,
                dtype=torch.float32,
            ),
            CPU,
            compile_for,
        )
        for pool in self.cache.layers:
            pool.fill_(torch.finfo(torch.float32).max)

    def attend(
        self, qkv: torch.Tensor, lanes: Sequence[int], counts: Sequence[int], ends: Sequence[int]
    ) -> torch.Tensor:
        spans = [
            Span(end - count, count, self.own_blocks[lane])
            for lane, count, end in zip(lanes, counts, ends, strict=True)
        ]
        with torch.inference_mode():
            step = self.cache.lay_out(spans)
            return step.attend(port_layer(self.layer), qkv, self.rope)


def port_layer(layer: Layer) -> AttentionLayer:
    norms = [None if weight is None else Norm(weight, 1e-6) for weight in layer.norms()]
    return AttentionLayer(1, layer.scale, layer.window or None, layer.softcap or None, *norms)


def assert_near(got: torch.Tensor, sequences: Sequence[torch.Tensor], layer: Layer) -> None:
    exact = torch.cat([textbook(layer, each) for each in sequences]).float()
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer", [each for each in LAYERS if not each.is_int8 and each.heads < 20], ids=repr
)
def test_it_is_the_textbooks_attention_in_whichever_chunks(layer: Layer) -> None:
    lengths = (130, 1, 17, 257)
    sequences = sequences_of(layer, lengths)
    assert_near(FlexCache(layer, lengths).run(sequences, all_at_once), sequences, layer)
    assert_near(FlexCache(layer, lengths, seed=1).run(sequences, mixed()), sequences, layer)


def test_what_is_not_finite_stays_with_its_own_sequence() -> None:
    layer = Layer(heads=4, kv_heads=2, head_dim=16)
    healthy, sick = sequences_of(layer, [60, 60])
    sick[::3] = torch.nan
    sick[1::3, ::2], sick[2::3, ::2] = torch.inf, -torch.inf

    cache = FlexCache(layer, [60, 60])
    together = cache.run([sick, healthy], mixed())
    assert_near(together[60:], [healthy], layer)

    # Whoever gets the sick sequence's blocks next does not notice, even where it writes less.
    assert_near(cache.run([healthy[:37]], mixed()), [healthy[:37]], layer)


def test_blocks_that_sequences_share_have_their_place_in_each() -> None:
    layer = Layer(heads=4, kv_heads=2, head_dim=16)
    (sequence,) = sequences_of(layer, [48])
    cache = FlexCache(layer, [48, 48])
    cache.run([sequence], all_at_once)
    first, second, third = cache.own_blocks[0]
    # The same block comes first in one sequence and second in another.
    cache.own_blocks = [[first, second, third], [cache.own_blocks[1][0], first, third]]
    turned = torch.cat((sequence[32:], sequence[:16], sequence[32:33]))
    alone = FlexCache(layer, [48]).run([turned], all_at_once)
    cache.attend(turned[:32], [1], [32], [32])
    together = cache.attend(torch.cat((sequence[47:], turned[32:])), [0, 1], [1, 1], [48, 33])
    torch.testing.assert_close(together[1:], alone[32:], rtol=1e-4, atol=1e-5)


def test_a_step_is_laid_out_in_rows_of_one_sequence_each() -> None:
    laid_out = places(
        [Span(20, 1, [7, 3]), Span(0, 130, range(9)), Span(15, 3, [5, 6, 8])],
        block_size=16,
        scratch_block=9,
    )
    short, long = laid_out.calls
    assert short.firsts.tolist() == [20, 128, 15]
    assert short.num_blocks.tolist() == [2, 9, 2]
    scratch = [9] * 7
    assert short.tables.tolist() == [[7, 3, *scratch], list(range(9)), [5, 6, *scratch]]
    assert short.tokens.tolist() == [0, 0, 0, 129, 130, 0, 131, 132, 133]
    assert (long.firsts.tolist(), long.num_blocks.tolist()) == ([0], [8])
    assert long.tokens.tolist() == list(range(1, 129))
    assert laid_out.order.tolist() == [0, *range(9, 137), 3, 4, 6, 7, 8]
    assert laid_out.positions.tolist() == [20, *range(130), 15, 16, 17]
    assert laid_out.slots.tolist() == [3 * 16 + 4, *range(130), 5 * 16 + 15, 6 * 16, 6 * 16 + 1]


def test_exactly_the_blocks_with_something_to_see_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plain function goes by the mask alone and compiled ones by the list of blocks first."""
    masks: list[BlockMask] = []
    plain = flex_attention.flex_attention

    def remember(*tensors: torch.Tensor, **options: BlockMask) -> torch.Tensor:
        masks.append(options["block_mask"])
        return plain(*tensors, **options)

    monkeypatch.setattr(flex_attention, "flex_attention", remember)
    layer = Layer(heads=4, kv_heads=2, head_dim=16)
    lengths = (130, 1, 17, 64)
    FlexCache(layer, lengths).run(sequences_of(layer, lengths), mixed())
    assert len(masks) > 5
    for mask in masks:
        rows, columns = len(mask.kv_num_blocks), mask.seq_lengths[0]
        slots = torch.arange(mask.seq_lengths[1])
        for row in range(rows):
            seen = mask.mask_mod(
                torch.tensor(row), torch.tensor(0), torch.arange(columns)[:, None], slots
            )
            blocks = {slot // layer.block_size for slot in seen.any(0).nonzero().flatten().tolist()}
            listed = mask.kv_indices[row, 0, 0, : int(mask.kv_num_blocks[row])].tolist()
            assert sorted(listed) == sorted(blocks)


@pytest.mark.real
def test_it_compiles_in_one_piece_and_four_times_at_most() -> None:
    torch.compiler.reset()
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Attend:
        compiled.append(graph)
        return graph.forward

    def whole(function: Attend, *, is_dynamic: bool) -> Attend:
        return torch.compile(function, backend=backend, fullgraph=True, dynamic=is_dynamic)

    layer = Layer(heads=4, kv_heads=2, head_dim=16)
    lengths = (33, 1, 17, 64)
    sequences = sequences_of(layer, lengths)
    got = FlexCache(layer, lengths, compile_for=whole).run(sequences, mixed())
    assert_near(got, sequences, layer)
    assert 1 <= len(compiled) <= 4  # one row or several, of one token or several
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_and_norms_are_those_of_the_other_kernels(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def random_rows(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    codes = torch.randint(-127, 128, (8, 32), generator=generator).to(torch.int8)
    parts = [
        random_rows(24, 32).to(dtype),
        QuantizedWeight(8, codes, random_rows(8, 1).abs() / 100, None),
    ]
    biases = [None, random_rows(8).to(dtype)]
    norm = Norm(random_rows(32), 1e-5)
    x, residual = random_rows(5, 32).to(dtype), random_rows(5, 32).to(dtype)
    ours, oracle = flex_kernels(dtype), TorchKernels(torch.float32)
    product, expected = ours.product(parts, biases), oracle.product(parts, biases)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for prologue in (None, norm):
        torch.testing.assert_close(
            product(x, prologue=prologue, residual=residual).float(),
            expected(x.float(), prologue=prologue, residual=residual.float()),
            rtol=tolerance,
            atol=tolerance,
        )
    for gate in Gate:
        torch.testing.assert_close(
            product(x, gate=gate).float(),
            expected(x.float(), gate=gate),
            rtol=tolerance,
            atol=4 * tolerance,
        )
    torch.testing.assert_close(
        ours.norm(residual, norm, residual=residual).float(),
        oracle.norm(residual.float(), norm, residual=residual.float()),
        rtol=tolerance,
        atol=tolerance,
    )
    table = random_rows(9, 32).to(dtype)
    tokens = torch.tensor([3, 3, 8])
    assert torch.equal(ours.embed(tokens, table, 2.0), F.embedding(tokens, table) * 2)
    assert not product.state()
    with pytest.raises(SourceInvalid):
        ours.restore({})


def cache_shape(dtype: torch.dtype, head_dim: int = 16) -> CacheShape:
    return CacheShape(
        num_layers=3,
        num_heads=1,
        num_kv_heads=1,
        head_dim=head_dim,
        num_blocks=1,
        block_size=16,
        dtype=dtype,
    )


def test_what_a_gpu_could_not_do_is_refused() -> None:
    kernels = flex_kernels(torch.float16)
    assert kernels.cache_bytes(cache_shape(torch.float16)) == 3 * 2 * 16 * 16 * 2
    for dtype in (torch.int8, torch.bfloat16):
        with pytest.raises(Invalid, match="float16") as refused:
            kernels.cache_bytes(cache_shape(dtype))
        assert refused.value.param == "engine.kv_cache_dtype"
    with pytest.raises(UnsupportedModel, match="8 channels"):
        kernels.cache_bytes(cache_shape(torch.float16, head_dim=8))


def test_a_gpu_computes_in_the_half_precision_that_the_model_has(tmp_path: Path) -> None:
    config = read_config(write_model(tmp_path, torch_dtype="float16"))
    assert model_dtype(config, EngineSettings(), gpus=1) is torch.float16
    assert model_dtype(config, EngineSettings(), gpus=0) is torch.bfloat16
    assert model_dtype(config, EngineSettings(dtype="float32"), gpus=1) is torch.float32
