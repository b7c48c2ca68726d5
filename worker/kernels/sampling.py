"""What a token is chosen by: its row of logits, what adjusts them, and where the draw falls.

For every row, in this order:

1. Logits are adjusted: the bias is added; tokens that occurred are penalised, by repetition
   (positive logits divided, negative multiplied), then by presence and frequency (subtracted);
   what the mask leaves out is impossible.
2. Temperature 0 takes the largest, of equal ones the first. Otherwise logits are divided by it,
   and tokens are ordered by probability, equal ones by their id.
3. `top_k` keeps the first k; `top_p` those up to the first that brings the sum of probabilities,
   of what top_k kept, to top_p (Holtzman et al. 2020); `min_p` those at least as probable as
   min_p times the first (Nguyen et al. 2024).
4. The token is where the cumulative sum of what is kept exceeds `uniform` times all of it.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class TokenCounts:
    """How often tokens occur in an answer, of those that occur in it or in its prompt.

    Grows by one token at a time; `token_ids` are distinct, `counts` 0 for those of the prompt only.
    """

    def __init__(self, prompt: Iterable[int] = ()) -> None:
        self._places = {token_id: place for place, token_id in enumerate(dict.fromkeys(prompt))}
        self.token_ids = array("i", self._places)
        self.counts = array("i", bytes(self.token_ids.itemsize * len(self.token_ids)))

    def add(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self.token_ids))
        if place == len(self.token_ids):
            self.token_ids.append(token_id)
            self.counts.append(0)
        self.counts[place] += 1

    def ahead(self, token_ids: Iterable[int]) -> "TokenCounts":
        """A copy with tokens that are only guessed to follow."""
        copy = TokenCounts()
        copy._places = self._places.copy()
        copy.token_ids, copy.counts = self.token_ids[:], self.counts[:]
        for token_id in token_ids:
            copy.add(token_id)
        return copy


@dataclass(frozen=True, slots=True, eq=False)
class Penalties:
    """For tokens that occurred; repetition 1, presence 0 and frequency 0 change nothing."""

    repetition: float
    presence: float
    frequency: float
    occurred: TokenCounts


class Bias:
    """What is added to the logits of some tokens, each named once; -inf forbids one."""

    def __init__(self, values: Iterable[tuple[int, float]]) -> None:
        self.token_ids = array("i")
        self.values = array("f")
        for token_id, value in values:
            self.token_ids.append(token_id)
            self.values.append(value)


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """How the token of one row of logits is chosen; `uniform` is in [0, 1).

    `mask` is the row's place among the masks that are given with all draws, None for all tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0
    bias: Bias | None = None
    penalties: Penalties | None = None
    mask: int | None = None


class Unchosen(IntEnum):
    """Why a row of logits has no token."""

    NOT_FINITE = -1  # a logit that is allowed is NaN or infinitely large
    NOTHING_ALLOWED = -2


@dataclass(frozen=True, slots=True)
class LogProbability:
    """Of one token, and of the likeliest with their ids: natural, of the logits as they are.

    Of equally likely tokens the one with the lower id comes first.
    """

    value: float
    likeliest: tuple[tuple[int, float], ...]
