"""How fast each pair of a head's channels turns with the position."""

import math

import torch

from worker.models.config import LinearScaling, Llama3Scaling, Rope


def rotary_frequencies(rope: Rope, rotary_dim: int) -> torch.Tensor:
    """Radians a position, float32 [rotary_dim / 2]."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return frequencies
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling() as scaling:
            return _llama3_frequencies(frequencies, scaling)


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
