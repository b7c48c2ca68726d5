"""Chooses each sequence's tokens: what its request asks for becomes draws, draws become choices."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from worker.engine.choice import Choice, uniform
from worker.engine.request import SamplingParams
from worker.kernels.port import Kernels
from worker.kernels.sampling import Bias, Draw, Penalties, TokenCounts, Unchosen


class Sampler:
    """How one sequence's tokens are chosen: a token depends on its logits, `seed` and index only.

    Knows which tokens occurred; adding one costs the same however long the text is.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        seed: int,
        prompt_token_ids: Iterable[int],
        end_token_ids: frozenset[int],
    ) -> None:
        """`end_token_ids` end the answer, and may not be chosen for its first `min_tokens`."""
        self._sampling = sampling
        self._seed = seed
        self._num_tokens = 0
        self._bias = Bias(sampling.logit_bias) if sampling.logit_bias else None
        self._early_bias = self._bias
        if sampling.min_tokens:
            values = dict(sampling.logit_bias) | dict.fromkeys(end_token_ids, -math.inf)
            self._early_bias = Bias(values.items())
        self._occurred: TokenCounts | None = None
        if sampling.repetition_penalty != 1:
            self._occurred = TokenCounts(prompt_token_ids)
        elif sampling.presence_penalty or sampling.frequency_penalty:
            self._occurred = TokenCounts()

    @property
    def num_logprobs(self) -> int | None:
        return self._sampling.logprobs

    def add(self, token_id: int) -> None:
        """The sequence went on with this token."""
        self._num_tokens += 1
        if self._occurred is not None:
            self._occurred.add(token_id)

    def draw(self, guessed: Sequence[int] = (), *, mask: int | None = None) -> Draw:
        """For the next token, or for the one after some that are only guessed."""
        sampling = self._sampling
        index = self._num_tokens + len(guessed)
        is_early = index < sampling.min_tokens
        return Draw(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            uniform=uniform(self._seed, index) if self.is_drawn else 0.0,
            bias=self._early_bias if is_early else self._bias,
            penalties=self._penalties(guessed),
            mask=mask,
        )

    @property
    def is_drawn(self) -> bool:
        """By chance; else the likeliest token is taken."""
        return self._sampling.temperature > 0

    def _penalties(self, guessed: Sequence[int]) -> Penalties | None:
        if self._occurred is None:
            return None
        return Penalties(
            repetition=self._sampling.repetition_penalty,
            presence=self._sampling.presence_penalty,
            frequency=self._sampling.frequency_penalty,
            occurred=self._occurred.ahead(guessed) if guessed else self._occurred,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One row of logits: how its token is chosen, and how many log-probabilities are wanted."""

    draw: Draw
    num_logprobs: int | None = None


def sample(
    kernels: Kernels,
    logits: torch.Tensor,
    rows: Sequence[Row],
    masks: torch.Tensor | None = None,
) -> list[Choice | Unchosen]:
    """One choice a row of `logits` [rows, vocabulary]; `masks` as in Kernels.choose.

    Log-probabilities are the model's own: before bias, penalties, mask and temperature.
    """
    chosen = kernels.choose(logits, [row.draw for row in rows], masks) if rows else []
    choices = [each if isinstance(each, Unchosen) else Choice(each) for each in chosen]
    told = [
        Told(place, choice.token_id, row.num_logprobs)
        for place, (row, choice) in enumerate(zip(rows, choices, strict=True))
        if row.num_logprobs is not None and isinstance(choice, Choice)
    ]
    for each, choice in zip(told, with_logprobs(kernels, logits, told), strict=True):
        choices[each.row] = choice
    return choices


@dataclass(frozen=True, slots=True)
class Told:
    """A token of one row of logits whose log-probability is wanted, and those of the likeliest."""

    row: int
    token_id: int
    num_logprobs: int


def with_logprobs(kernels: Kernels, logits: torch.Tensor, told: Sequence[Told]) -> list[Choice]:
    """One choice each, of the given tokens."""
    if not told:
        return []
    found = kernels.log_probabilities(
        logits,
        [each.row for each in told],
        [each.token_id for each in told],
        max(each.num_logprobs for each in told),
    )
    return [
        Choice(each.token_id, logprob.value, logprob.likeliest[: each.num_logprobs])
        for each, logprob in zip(told, found, strict=True)
    ]
