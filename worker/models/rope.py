"""How fast each pair of a head's channels turns with the position."""

import math

import torch

from worker.models.rope_config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
)


def rotary_frequencies(rope: Rope, rotary_dim: int, *, context_tokens: int = 0) -> torch.Tensor:
    """Radians a position, float32 [rotary_dim / 2].

    `context_tokens`, the longest that there can be, is what dynamic scaling and LongRoPE go by:
    with the length of each sequence instead, keys that are in the cache would be rotated by other
    angles than the queries that meet them, and blocks could not be shared.
    """
    match rope.scaling:
        case None:
            return _frequencies(rope.theta, rotary_dim)
        case LinearScaling(factor):
            return _frequencies(rope.theta, rotary_dim) / factor
        case DynamicScaling() as scaling:
            return _frequencies(
                _ntk_theta(rope.theta, scaling, rotary_dim, context_tokens), rotary_dim
            )
        case YarnScaling() as scaling:
            return _yarn_frequencies(rope.theta, scaling, rotary_dim)
        case Llama3Scaling() as scaling:
            return _llama3_frequencies(_frequencies(rope.theta, rotary_dim), scaling)
        case LongRopeScaling() as scaling:
            is_long = context_tokens > scaling.original_context_tokens
            factors = scaling.long_factors if is_long else scaling.short_factors
            return _frequencies(rope.theta, rotary_dim) / torch.tensor(factors)


def rotary_magnitude(rope: Rope) -> float:
    """What cosines and sines are multiplied by."""
    scaling = rope.scaling
    return scaling.magnitude if isinstance(scaling, YarnScaling | LongRopeScaling) else 1.0


def _frequencies(theta: float, rotary_dim: int) -> torch.Tensor:
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return 1.0 / theta**exponents


def _ntk_theta(theta: float, scaling: DynamicScaling, rotary_dim: int, context: int) -> float:
    stretch = max(1.0, context / scaling.original_context_tokens)
    growth = scaling.factor * stretch - (scaling.factor - 1)
    return float(theta * growth ** (rotary_dim / (rotary_dim - 2)))


def _yarn_frequencies(theta: float, scaling: YarnScaling, rotary_dim: int) -> torch.Tensor:
    """Channels that turn more than `fast` times are kept, fewer than `slow` times stretched."""

    def channel(turns: float) -> float:
        wave_length = scaling.original_context_tokens / (turns * 2 * math.pi)
        return rotary_dim * math.log(wave_length) / (2 * math.log(theta))

    first, last = channel(scaling.fast), channel(scaling.slow)
    if scaling.is_truncated:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    if first == last:
        last += 0.001
    ramp = (torch.arange(rotary_dim // 2, dtype=torch.float32) - first) / (last - first)
    stretched = ramp.clamp(0, 1)
    frequencies = _frequencies(theta, rotary_dim)
    return frequencies / scaling.factor * stretched + frequencies * (1 - stretched)


def _llama3_frequencies(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Wave lengths over `longest` are stretched, under `shortest` kept, the rest blended."""
    context = scaling.original_context_tokens
    wave_lengths = 2 * math.pi / frequencies
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    stretched = frequencies / scaling.factor
    smooth = (context / wave_lengths - low) / (high - low)
    blended = (1 - smooth) * stretched + smooth * frequencies
    longest, shortest = context / low, context / high
    kept = torch.where(wave_lengths < shortest, frequencies, blended)
    return torch.where(wave_lengths > longest, stretched, kept)
