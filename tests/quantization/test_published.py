"""Published checkpoints: compressed-tensors, GPTQ and AWQ, against their own arithmetic."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.model_spec import EngineSettings
from infra.errors import PlatformError, SourceInvalid, UnsupportedModel
from tests.engine.tiny import CONFIG, load_model, random_tensors, write_model
from tests.quantization.checkpoints import (
    Tensors,
    awq,
    gptq,
    int_quantized,
    pack_quantized,
    random_layer,
    stored,
)
from worker.kernels.port import Span
from worker.parallel.share import whole
from worker.quantization.published import is_quantized, read_quantized
from worker.quantization.reader import WeightReader
from worker.quantization.scheme import Layout, Scheme, parse_scheme
from worker.weights.quantized import QuantizedWeight

SHAPE = (16, 128)
ROWS, COLUMNS = [whole(16)], whole(128)


def compressed(
    format: str, *, bits: int, strategy: str, group_size: int | None = None
) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group_size}
    activations = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


W8A8 = compressed("int-quantized", bits=8, strategy="channel")


def read(folder: Path, scheme: Scheme, tensors: Tensors) -> QuantizedWeight:
    weights = stored(folder, tensors)
    assert is_quantized(weights, scheme, "x")
    return read_quantized(weights, scheme, "x", SHAPE)


def assert_close(quantized: QuantizedWeight, values: torch.Tensor, *, most: float) -> None:
    error = float((quantized.dequantise() - values).norm() / values.norm())
    assert error <= most


@pytest.mark.parametrize("group_size", [32, 64, 128, None])
@pytest.mark.parametrize(
    ("layout", "pack"),
    [(Layout.PACKED, pack_quantized), (Layout.GPTQ, gptq), (Layout.AWQ, awq)],
)
def test_four_bits_keep_their_codes(
    tmp_path: Path, layout: Layout, pack: Callable[..., Tensors], group_size: int | None
) -> None:
    layer = random_layer(*SHAPE, group_size=group_size)
    scheme = Scheme(layout, 4, group_size, stores_zero_less_one=layout is Layout.GPTQ)

    quantized = read(tmp_path, scheme, pack("x", layer))

    assert quantized.bits == 4
    assert quantized.codes.tolist() == layer.codes.tolist()
    assert_close(quantized, layer.values(), most=1e-3)  # offsets are rounded to float16


def test_int8_with_a_scale_a_row_keeps_its_codes(tmp_path: Path) -> None:
    layer = random_layer(*SHAPE, bits=8, group_size=None, symmetric=True)
    tensors = int_quantized("x", layer)
    del tensors["x.weight_zero_point"]

    quantized = read(tmp_path, Scheme(Layout.CODES, 8, None), tensors)

    assert torch.equal(quantized.codes, tensors["x.weight"])
    assert torch.equal(quantized.dequantise(), layer.values())


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.GPTQ])
def test_packed_bytes_with_a_scale_a_row_keep_their_codes(tmp_path: Path, layout: Layout) -> None:
    layer = random_layer(*SHAPE, bits=8, group_size=None, symmetric=True)
    pack = pack_quantized if layout is Layout.PACKED else gptq
    scheme = Scheme(layout, 8, None, stores_zero_less_one=layout is Layout.GPTQ)

    quantized = read(tmp_path, scheme, pack("x", layer, 8))

    assert torch.equal(quantized.dequantise(), layer.values())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("layout", "pack"), [(Layout.PACKED, pack_quantized), (Layout.GPTQ, gptq)])
def test_columns_in_the_order_of_activations_are_rounded_to_8_bits(
    tmp_path: Path, layout: Layout, pack: Callable[..., Tensors], bits: int
) -> None:
    layer = random_layer(*SHAPE, bits=bits, group_size=32, in_order=False)
    scheme = Scheme(layout, 8 if bits == 8 else 4, 32, stores_zero_less_one=layout is Layout.GPTQ)

    quantized = read(tmp_path, scheme, pack("x", layer, bits))

    assert quantized.bits == 8
    assert_close(quantized, layer.values(), most=0.01)


def test_int8_in_groups_or_with_zero_points_is_rounded_anew(tmp_path: Path) -> None:
    in_groups = random_layer(*SHAPE, bits=8, group_size=32, symmetric=True)
    with_zeros = random_layer(*SHAPE, bits=8, group_size=None)

    grouped = read(tmp_path / "a", Scheme(Layout.CODES, 8, 32), int_quantized("x", in_groups))
    shifted = read(tmp_path / "b", Scheme(Layout.CODES, 8, None), int_quantized("x", with_zeros))

    assert_close(grouped, in_groups.values(), most=0.01)
    assert_close(shifted, with_zeros.values(), most=0.01)


def test_small_groups_of_four_bits_become_8_bits(tmp_path: Path) -> None:
    layer = random_layer(*SHAPE, group_size=16)

    quantized = read(tmp_path, Scheme(Layout.AWQ, 4, 16), awq("x", layer))

    assert quantized.bits == 8
    assert_close(quantized, layer.values(), most=0.01)


def test_both_versions_of_gptq_are_told_apart(tmp_path: Path) -> None:
    layer = random_layer(*SHAPE)
    first, second = (
        read(
            tmp_path / str(less_one),
            Scheme(Layout.GPTQ, 4, 32, stores_zero_less_one=less_one),
            gptq("x", layer, less_one=less_one),
        )
        for less_one in (True, False)
    )

    assert torch.equal(first.dequantise(), second.dequantise())


def test_a_layer_that_was_left_as_floats_is_read_as_such(tmp_path: Path) -> None:
    plain = torch.randn(SHAPE).to(torch.bfloat16)
    weights = stored(tmp_path, {"y.weight": plain} | gptq("x", random_layer(*SHAPE)))
    reader = WeightReader(weights, Scheme(Layout.GPTQ, 4, 32, stores_zero_less_one=True), 4)

    assert isinstance(reader.linears([("x", ROWS)], COLUMNS, torch.bfloat16)[0], QuantizedWeight)
    (found,) = reader.linears([("y", ROWS)], COLUMNS, torch.bfloat16)
    assert isinstance(found, torch.Tensor) and torch.equal(found, plain)


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("weight_packed", None),
        ("weight_packed", torch.zeros(16, 15, dtype=torch.int32)),
        ("weight_packed", torch.zeros(16, 16, dtype=torch.int64)),
        ("weight_packed", torch.zeros(16, 16)),
        ("weight_scale", None),
        ("weight_scale", torch.zeros(16, 1)),
        ("weight_scale", torch.zeros(16, 4, dtype=torch.int32)),
        ("weight_shape", torch.tensor([16, 120])),
        ("weight_zero_point", torch.zeros(16, 4, dtype=torch.int32)),
        ("weight_g_idx", torch.full((128,), 4, dtype=torch.int32)),
        ("weight_g_idx", torch.full((128,), -1, dtype=torch.int32)),
        ("weight_g_idx", torch.zeros(64, dtype=torch.int32)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, part: str, tensor: torch.Tensor | None
) -> None:
    tensors = pack_quantized("x", random_layer(*SHAPE))
    del tensors[f"x.{part}"]
    if tensor is not None:
        tensors[f"x.{part}"] = tensor
    reader = WeightReader(stored(tmp_path, tensors), Scheme(Layout.PACKED, 4, 32), None)

    with pytest.raises((SourceInvalid, UnsupportedModel), match="'x"):
        reader.linears([("x", ROWS)], COLUMNS, torch.float32)


def test_groups_that_do_not_divide_a_row_are_refused(tmp_path: Path) -> None:
    weights = stored(tmp_path, pack_quantized("x", random_layer(*SHAPE)))

    with pytest.raises(SourceInvalid, match="do not divide"):
        read_quantized(weights, Scheme(Layout.PACKED, 4, 48), "x", SHAPE)


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        (None, None),
        (W8A8, Scheme(Layout.CODES, 8, None)),
        (
            compressed("pack-quantized", bits=4, strategy="group", group_size=128),
            Scheme(Layout.PACKED, 4, 128),
        ),
        (compressed("pack-quantized", bits=8, strategy="channel"), Scheme(Layout.PACKED, 8, None)),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
            Scheme(Layout.GPTQ, 4, 128, stores_zero_less_one=True),
        ),
        (
            {
                "quant_method": "gptq",
                "bits": 8,
                "group_size": -1,
                "checkpoint_format": "gptq_v2",
            },
            Scheme(Layout.GPTQ, 8, None),
        ),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "GEMM"},
            Scheme(Layout.AWQ, 4, 64),
        ),
    ],
)
def test_the_config_says_how_weights_are_stored(config: Any, scheme: Scheme | None) -> None:
    assert parse_scheme(config) == scheme


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "bitsandbytes"},
        {"quant_method": "gptq", "bits": 3, "group_size": 128},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"a": {}}},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"},
        {"quant_method": "awq", "bits": 8, "group_size": 128},
        compressed("float-quantized", bits=8, strategy="channel"),
        compressed("int-quantized", bits=4, strategy="channel"),
        compressed("int-quantized", bits=8, strategy="tensor"),
        W8A8 | {"sparsity_config": {"format": "sparse-24-bitmask"}},
    ],
)
def test_formats_that_are_not_read_are_said_to_be_unsupported(config: Any) -> None:
    with pytest.raises(UnsupportedModel):
        parse_scheme(config)


@pytest.mark.parametrize(
    "config",
    [
        7,
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "gptq", "bits": "4", "group_size": 128},
        {"quant_method": "gptq", "bits": 4, "group_size": 0},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": None}}},
    ],
)
def test_a_nonsensical_config_is_refused(config: Any) -> None:
    with pytest.raises(SourceInvalid):
        parse_scheme(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.fixed_dictionaries({"weights": st.fixed_dictionaries({}, optional={"type": inner})})
    ),
    max_leaves=3,
)


@given(
    st.fixed_dictionaries(
        {"quant_method": st.sampled_from(["gptq", "awq", "compressed-tensors"])},
        optional=dict.fromkeys(
            ("bits", "group_size", "version", "checkpoint_format", "config_groups"), JSON
        ),
    )
)
def test_no_config_makes_anything_but_a_typed_error(config: dict[str, Any]) -> None:
    with contextlib.suppress(PlatformError):
        parse_scheme(config)


def test_a_published_model_computes_what_its_dequantised_weights_do(tmp_path: Path) -> None:
    """A whole model of GPTQ layers against the same weights written out as floats."""
    config = CONFIG | {"torch_dtype": "float32"}
    plain, packed = {}, {}
    for seed, (name, tensor) in enumerate(random_tensors(config).items()):
        if "proj" in name:
            layer = random_layer(*tensor.shape, seed=seed)
            plain[name] = layer.values().contiguous()
            packed |= gptq(name.removesuffix(".weight"), layer)
        else:
            plain[name] = packed[name] = tensor
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    for name, tensors in (("plain", plain), ("packed", packed)):
        extra = {"quantization_config": quantization} if name == "packed" else {}
        write_model(tmp_path / name, torch_dtype="float32", **extra)
        stored(tmp_path / name, tensors)

    expected, found = (logits(tmp_path / name) for name in ("plain", "packed"))

    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.1), ("int4", 0.6)])
def test_a_model_is_rounded_when_it_is_loaded(
    tmp_path: Path, quantization: Literal["int8", "int4"], most: float
) -> None:
    folder = write_model(tmp_path, torch_dtype="float32")

    plain = logits(folder)
    rounded = logits(folder, EngineSettings(quantization=quantization))

    assert 0 < float((rounded - plain).norm() / plain.norm()) < most


def test_keys_and_values_are_rounded_to_8_bits_where_asked(tmp_path: Path) -> None:
    folder = write_model(tmp_path, torch_dtype="float32")

    plain = logits(folder)
    rounded = logits(folder, EngineSettings(kv_cache_dtype="int8"))

    assert 0 < float((rounded - plain).norm() / plain.norm()) < 0.05


def logits(folder: Path, settings: EngineSettings | None = None) -> torch.Tensor:
    model = load_model(folder, settings)
    cache = model.allocate_cache(num_blocks=2, block_size=16)
    tokens = list(range(5, 25))
    return model.logits(tokens, [Span(0, len(tokens), range(2))], [0, 10, 19], cache)
