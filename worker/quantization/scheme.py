"""How the weights of a published checkpoint are quantised, as its config.json says."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.quantized import Bits

_MOST_GROUP_SIZE = 1 << 16


class Layout(Enum):
    """Which tensors a linear layer has in the files."""

    CODES = "compressed-tensors int-quantized"  # weight (int8), weight_scale
    PACKED = "compressed-tensors pack-quantized"  # weight_packed, weight_scale, weight_shape
    GPTQ = "gptq"  # qweight, qzeros, scales, g_idx
    AWQ = "awq"  # qweight, qzeros, scales


@dataclass(frozen=True, slots=True)
class Scheme:
    """One format for all quantised layers of a checkpoint.

    How activations are to be quantised (W8A8) is left to the kernels, which do it finer.
    """

    layout: Layout
    bits: Bits
    group_size: int | None  # columns that share a scale; None: a whole row
    stores_zero_less_one: bool = False  # GPTQ's first format


def parse_scheme(value: Any) -> Scheme | None:
    """Reads `quantization_config`.

    Raises UnsupportedModel for a format that is not read here, SourceInvalid for nonsense.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _nonsense("is not an object")
    match value.get("quant_method"):
        case "compressed-tensors":
            return _compressed_tensors(value)
        case "gptq":
            return _gptq(value)
        case "awq":
            return _awq(value)
        case other:
            raise UnsupportedModel(
                f"the weights are quantised as {str(other)[:50]}",
                hint="this engine reads compressed-tensors, GPTQ and AWQ",
            )


def _compressed_tensors(config: Mapping[str, Any]) -> Scheme:
    """https://github.com/vllm-project/compressed-tensors"""
    for name in ("sparsity_config", "transform_config"):
        if config.get(name):
            raise UnsupportedModel(f"the weights have a {name}")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise _nonsense("has no config_groups")
    schemes = {_compressed_group(group, config.get("format")) for group in groups.values()}
    if len(schemes) > 1:
        raise UnsupportedModel("the layers are quantised in different ways")
    return schemes.pop()


def _compressed_group(group: Any, default_format: Any) -> Scheme:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise _nonsense("has a group without weights")
    if weights.get("type", "int") != "int":
        raise UnsupportedModel(f"the weights are quantised as {str(weights['type'])[:50]}")
    match weights.get("strategy"):
        case "channel":
            group_size = None
        case "group":
            group_size = _group_size(weights)
        case other:
            raise UnsupportedModel(f"the weights share scales by {str(other)[:50]}")
    bits = _bits(weights.get("num_bits"))
    match group.get("format") or default_format:
        case "int-quantized" if bits == 8:
            return Scheme(Layout.CODES, bits, group_size)
        case "pack-quantized":
            return Scheme(Layout.PACKED, bits, group_size)
        case other:
            raise UnsupportedModel(f"the weights are stored as {str(other)[:50]}")


def _gptq(config: Mapping[str, Any]) -> Scheme:
    """Frantar et al. 2022, in the files of AutoGPTQ and GPTQModel."""
    if config.get("dynamic"):
        raise UnsupportedModel("the layers are quantised in different ways")
    match config.get("checkpoint_format", "gptq"):
        case "gptq" | "gptq_v2" as version:
            pass
        case other:
            raise UnsupportedModel(f"the weights are stored as {str(other)[:50]}")
    return Scheme(
        Layout.GPTQ,
        _bits(config.get("bits")),
        _group_size(config),
        stores_zero_less_one=version == "gptq",
    )


def _awq(config: Mapping[str, Any]) -> Scheme:
    """Lin et al. 2023, in the files of AutoAWQ."""
    version = config.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise UnsupportedModel(f"the weights are stored as AWQ for {str(version)[:50]}")
    if _bits(config.get("bits")) != 4:
        raise UnsupportedModel("AWQ has 4 bits")
    return Scheme(Layout.AWQ, 4, _group_size(config))


def _bits(value: Any) -> Bits:
    if type(value) is not int:
        raise _nonsense("does not say how many bits a weight has")
    if value == 4:
        return 4
    if value == 8:
        return 8
    raise UnsupportedModel(f"the weights have {value} bits", hint="this engine reads 4 and 8")


def _group_size(values: Mapping[str, Any]) -> int | None:
    """-1 stands for the whole row."""
    size = values.get("group_size")
    if size == -1:
        return None
    if type(size) is not int or not 1 <= size <= _MOST_GROUP_SIZE:
        raise _nonsense("has no possible group_size")
    return size


def _nonsense(what: str) -> SourceInvalid:
    return SourceInvalid(f"config.json: quantization_config {what}")
