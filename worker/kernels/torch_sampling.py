"""Sampling in plain torch: sorts whole rows, and is what faster ways are compared with."""

import math
from collections.abc import Sequence

import torch

from worker.kernels.sampling import Draw, LogProbability, Penalties, Unchosen


def choose(
    logits: torch.Tensor, draws: Sequence[Draw], masks: torch.Tensor | None
) -> list[int | Unchosen]:
    """See Kernels.choose."""
    return [
        _choose(_adjusted(logits[row].float(), draw, masks), draw) for row, draw in enumerate(draws)
    ]


def log_probabilities(
    logits: torch.Tensor, rows: Sequence[int], token_ids: Sequence[int], count: int
) -> list[LogProbability]:
    """See Kernels.log_probabilities."""
    found = []
    for row, token_id in zip(rows, token_ids, strict=True):
        logprobs = torch.log_softmax(logits[row].float(), -1)
        ordered, order = logprobs.sort(descending=True, stable=True)
        likeliest = zip(order[:count].tolist(), ordered[:count].tolist(), strict=True)
        found.append(LogProbability(float(logprobs[token_id]), tuple(likeliest)))
    return found


def _adjusted(logits: torch.Tensor, draw: Draw, masks: torch.Tensor | None) -> torch.Tensor:
    """[vocabulary] in float32"""
    if draw.bias is not None:
        places = torch.tensor(draw.bias.token_ids, device=logits.device, dtype=torch.int64)
        logits = logits.index_add(0, places, torch.tensor(draw.bias.values).to(logits))
    if draw.penalties is not None:
        logits = _penalised(logits, draw.penalties)
    if draw.mask is not None:
        assert masks is not None
        logits = logits.masked_fill(~_allowed(masks[draw.mask], len(logits)), -math.inf)
    return logits


def _penalised(logits: torch.Tensor, penalties: Penalties) -> torch.Tensor:
    occurred = penalties.occurred
    places = torch.tensor(occurred.token_ids, device=logits.device, dtype=torch.int64)
    counts = torch.tensor(occurred.counts, device=logits.device)
    values = logits[places].double()
    values = torch.where(values > 0, values / penalties.repetition, values * penalties.repetition)
    values = values - penalties.frequency * counts - penalties.presence * (counts > 0)
    return logits.index_copy(0, places, values.float())


def _allowed(mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Token i is bit i % 32 of word i // 32: as booleans [vocabulary]"""
    bits = torch.arange(32, device=mask.device, dtype=torch.int32)
    return (mask[:, None] >> bits & 1).flatten()[:vocabulary].bool()


def _choose(logits: torch.Tensor, draw: Draw) -> int | Unchosen:
    largest = float(logits.max())
    if math.isnan(largest) or largest == math.inf:
        return Unchosen.NOT_FINITE
    if largest == -math.inf:
        return Unchosen.NOTHING_ALLOWED
    if draw.temperature == 0:
        return int(logits.argmax())
    ordered, order = logits.sort(descending=True, stable=True)
    # Less the largest, so that the smallest temperature overflows to -inf and not to a NaN.
    weights = ((ordered.double() - largest) / draw.temperature).exp()
    weights = weights[: draw.top_k or None]
    sums = weights.cumsum(0)
    num_kept = min(
        int((sums < draw.top_p * sums[-1]).sum()) + 1,
        int((weights >= draw.min_p).sum()),
        int((weights > 0).sum()),
    )
    sums = sums[:num_kept]
    place = int((sums <= draw.uniform * sums[-1]).sum())
    return int(order[min(place, num_kept - 1)])
