"""Chooses tokens from logits."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch

from worker.engine.choice import Choice, Draw

_CANDIDATES = 64  # likeliest tokens looked at before all are sorted


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Choice | None]:
    """One choice a row of `logits` [rows, vocabulary]; None where they are not finite.

    Temperature 0 takes the largest logit, of equal ones the first. Otherwise tokens are ordered by
    their probability, cut after the first that brings the sum to top_p (Holtzman et al. 2020), and
    drawn by inversion of the cumulative sum.
    """
    largest, first = logits.max(-1)
    token_ids: list[int] = first.tolist()
    is_finite = [math.isfinite(value) for value in largest.tolist()]
    random = [row for row, draw in enumerate(draws) if draw.temperature > 0 and is_finite[row]]
    if random:
        drawn = _draw_rows(logits, largest, random, [draws[row] for row in random])
        for row, token_id in zip(random, drawn, strict=True):
            token_ids[row] = token_id
    choices: list[Choice | None] = [Choice(token_id) for token_id in token_ids]
    for row, draw in enumerate(draws):
        if not is_finite[row]:
            choices[row] = None
        elif draw.num_logprobs is not None:
            choices[row] = _with_logprobs(logits[row], token_ids[row], draw.num_logprobs)
    return choices


def _draw_rows(
    logits: torch.Tensor, largest: torch.Tensor, rows: list[int], draws: list[Draw]
) -> list[int]:
    temperatures = torch.tensor([draw.temperature for draw in draws], device=logits.device)
    # Less the largest, so that the smallest temperature overflows to -inf and not to a NaN.
    shifted = logits[rows].float() - largest[rows, None].float()
    probabilities = torch.softmax(shifted / temperatures[:, None], -1)
    likeliest = probabilities.topk(min(_CANDIDATES, logits.shape[1]))
    values, token_ids = likeliest.values.tolist(), likeliest.indices.tolist()
    drawn = []
    for row, draw in enumerate(draws):
        place = _place_in_candidates(values[row], draw)
        if place is None:
            drawn.append(_draw_exactly(probabilities[row], likeliest.indices[row], draw))
        else:
            drawn.append(token_ids[row][place])
    return drawn


def _place_in_candidates(values: list[float], draw: Draw) -> int | None:
    """The drawn place among the likeliest tokens; None when they do not decide it."""
    sums = list(accumulate(values))
    if draw.top_p < 1:
        return _place(sums, draw) if sums[-1] >= draw.top_p else None
    place = bisect_right(sums, draw.uniform)
    return place if place < len(sums) else None


def _draw_exactly(probabilities: torch.Tensor, candidates: torch.Tensor, draw: Draw) -> int:
    """From all tokens: the candidates in their order, then the others in theirs.

    Sorting all at once could put equal ones in another order than the candidates have.
    """
    others = probabilities.index_fill(0, candidates, -1.0).sort(descending=True, stable=True)
    count = len(probabilities) - len(candidates)
    values = torch.cat((probabilities[candidates], others.values[:count])).tolist()
    place = _place(list(accumulate(values)), draw)
    return int(torch.cat((candidates, others.indices[:count]))[place])


def _place(sums: list[float], draw: Draw) -> int:
    """Inverts the cumulative sums up to the first that reaches top_p."""
    last = next((place for place, mass in enumerate(sums) if mass >= draw.top_p), len(sums) - 1)
    return min(bisect_right(sums, draw.uniform * sums[last], 0, last), last)


def _with_logprobs(logits: torch.Tensor, token_id: int, count: int) -> Choice:
    logprobs = torch.log_softmax(logits.float(), -1)
    likeliest = logprobs.topk(min(count, len(logprobs)))
    return Choice(
        token_id,
        logprob=float(logprobs[token_id]),
        top=tuple(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)),
    )
