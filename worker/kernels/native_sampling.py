"""Sampling by the native operators: lays draws out as the arrays they read."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from worker.kernels.sampling import Draw, LogProbability, Penalties, TokenCounts, Unchosen

_NO_PENALTIES = Penalties(1.0, 0.0, 0.0, TokenCounts())
_NO_MASK = -1


def choose(
    logits: torch.Tensor, draws: Sequence[Draw], masks: torch.Tensor | None
) -> list[int | Unchosen]:
    """See Kernels.choose; logits are float32."""
    numbers, mask_rows = array("d"), array("i")
    bias, occurred = _Ragged(array("f")), _Ragged(array("i"))
    for draw in draws:
        penalties = draw.penalties or _NO_PENALTIES
        numbers.extend((draw.temperature, draw.top_k, draw.top_p, draw.min_p, draw.uniform))
        numbers.extend((penalties.repetition, penalties.presence, penalties.frequency))
        mask_rows.append(_NO_MASK if draw.mask is None else draw.mask)
        if draw.bias is not None:
            bias.extend(draw.bias.token_ids, draw.bias.values)
        occurred.extend(penalties.occurred.token_ids, penalties.occurred.counts)
        bias.end_row()
        occurred.end_row()
    chosen: list[int] = torch.ops.firstlight.choose.default(
        logits,
        _tensor(numbers, torch.float64).view(len(draws), -1),
        *bias.tensors(torch.float32),
        *occurred.tensors(torch.int32),
        masks,
        _tensor(mask_rows, torch.int32),
    ).tolist()
    return [token_id if token_id >= 0 else Unchosen(token_id) for token_id in chosen]


def log_probabilities(
    logits: torch.Tensor, rows: Sequence[int], token_ids: Sequence[int], count: int
) -> list[LogProbability]:
    """See Kernels.log_probabilities; logits are float32."""
    values, top_tokens, top_values = torch.ops.firstlight.log_probabilities.default(
        logits, torch.tensor(rows), torch.tensor(token_ids), min(count, logits.shape[1])
    )
    return [
        LogProbability(value, tuple(zip(tokens, logprobs, strict=True)))
        for value, tokens, logprobs in zip(
            values.tolist(), top_tokens.tolist(), top_values.tolist(), strict=True
        )
    ]


@dataclass(slots=True)
class _Ragged:
    """Some tokens of each row, with a number each, one row's behind the other's."""

    numbers: "array[int] | array[float]"
    token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    starts: "array[int]" = field(default_factory=lambda: array("i", [0]))

    def extend(self, token_ids: "array[int]", numbers: "array[int] | array[float]") -> None:
        self.token_ids += token_ids
        self.numbers += numbers  # type: ignore[operator]

    def end_row(self) -> None:
        self.starts.append(len(self.token_ids))

    def tensors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (
            _tensor(self.starts, torch.int32),
            _tensor(self.token_ids, torch.int32),
            _tensor(self.numbers, dtype),
        )


def _tensor(numbers: "array[int] | array[float]", dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
