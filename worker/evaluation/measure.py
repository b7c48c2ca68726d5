"""How well a model predicts a text, and how far its predictions are from a reference's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from worker.kernels.port import Span
from worker.models.causal_model import CausalModel

_BLOCK = 16
_STEP_TOKENS = 128  # bounds the logits that are kept at once
_LIKELIEST = 256  # tokens of the reference that the divergence tells apart; the rest are one more


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Of every token of the text, given those before it in its window."""

    loss: torch.Tensor  # [tokens] negative log-likelihood of the token that follows
    choice: torch.Tensor  # [tokens] the likeliest
    likeliest: torch.Tensor  # [tokens, _LIKELIEST] ids, of the reference
    log_probabilities: torch.Tensor  # [tokens, _LIKELIEST] of those ids

    @property
    def perplexity(self) -> float:
        return float(self.loss.double().mean().exp())

    def agreement(self, reference: "Predictions") -> float:
        return float((self.choice == reference.choice).double().mean())

    def divergence(self, reference: "Predictions") -> float:
        """Kullback-Leibler from the reference, in nats; a lower bound, and close to it."""
        here, there = self.log_probabilities.double(), reference.log_probabilities.double()
        each = (there.exp() * (there - here)).sum(1)
        rest, rest_there = (_rest(each) for each in (here, there))
        return float((each + rest_there * (rest_there / rest).log()).mean().clamp(min=0))


def predict(
    model: CausalModel,
    pieces: Sequence[Sequence[int]],
    *,
    reference: Predictions | None,
    on_piece: Callable[[], None],
) -> Predictions:
    """Reads the pieces one after another; `on_piece` hears that one is done."""
    longest = max(len(piece) for piece in pieces)
    cache = model.allocate_cache(num_blocks=-(-longest // _BLOCK), block_size=_BLOCK)
    blocks = range(-(-longest // _BLOCK))
    found: list[Predictions] = []
    done = 0
    for piece in pieces:
        for first in range(0, len(piece) - 1, _STEP_TOKENS):
            tokens = piece[first : min(first + _STEP_TOKENS, len(piece) - 1)]
            count = len(tokens)
            logits = model.logits(tokens, [Span(first, count, blocks)], range(count), cache)
            wanted = None if reference is None else reference.likeliest[done : done + count]
            found.append(_predictions(logits, piece[first + 1 : first + 1 + count], wanted))
            done += count
        on_piece()
    return Predictions(
        torch.cat([each.loss for each in found]),
        torch.cat([each.choice for each in found]),
        torch.cat([each.likeliest for each in found]),
        torch.cat([each.log_probabilities for each in found]),
    )


def _predictions(
    logits: torch.Tensor, followers: Sequence[int], likeliest: torch.Tensor | None
) -> Predictions:
    """Of [tokens, vocabulary] logits; of the reference `likeliest` is found here."""
    logs = logits.float().cpu().log_softmax(-1)
    loss = -logs.gather(1, torch.tensor(followers).unsqueeze(1)).squeeze(1)
    if likeliest is None:
        likeliest = logs.topk(min(_LIKELIEST, logs.shape[1])).indices
    return Predictions(loss, logs.argmax(1), likeliest, logs.gather(1, likeliest))


def _rest(log_probabilities: torch.Tensor) -> torch.Tensor:
    """What the other tokens have together."""
    return (1 - log_probabilities.exp().sum(1)).clamp_(min=1e-9)
