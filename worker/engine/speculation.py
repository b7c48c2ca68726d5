"""Guesses of what follows a text from how it went on before, as many as are worth their cost.

Prompt lookup (Saxena 2023): text that repeats itself goes on as it did the last time. How likely
guesses are is learnt from all of them, those that no step computed too: they are compared with the
tokens that came. So nothing has to be tried again to find out that it pays again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.engine.guess_cost import MOST_GUESSES, GuessCost, worth

_LONGEST, _SHORTEST = 4, 2  # tokens that have to be the same before a guess
_MOST_INDEXED = 8192  # tokens of a prompt, its last; about 300 bytes each
_FIRST_RATE = 0.5
_WEIGHT_OF_NEWEST = 1 / 8
_WEIGHT_OF_NEWEST_FOR_ALL = 1 / 64


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens that may follow, and how many before them were the same where they were found."""

    token_ids: tuple[int, ...] = ()
    matched: int = 0


class Proposer(Protocol):
    """Guesses for one sequence, whose tokens only grow from call to call."""

    def propose(self, token_ids: Sequence[int], most: int) -> Proposal:
        """At most so many tokens; none where nothing can be guessed."""
        ...


class NgramProposer:
    """What followed the last tokens where they occurred last, the longest match first.

    A new token costs the same however long the text is.
    """

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}  # positions after the last of each n-gram
        self._num_indexed: int | None = None

    def propose(self, token_ids: Sequence[int], most: int) -> Proposal:
        self._index(token_ids)
        end = len(token_ids)
        for length in range(min(_LONGEST, end), _SHORTEST - 1, -1):
            position = self._next.get(tuple(token_ids[end - length :]))
            if position is not None:
                return Proposal(_continued(token_ids, position, most), length)
        return Proposal()

    def _index(self, token_ids: Sequence[int]) -> None:
        """Adds all n-grams that something follows."""
        if self._num_indexed is None:
            self._num_indexed = max(1, len(token_ids) - _MOST_INDEXED)
        for position in range(self._num_indexed, len(token_ids)):
            for length in range(_SHORTEST, min(_LONGEST, position) + 1):
                self._next[tuple(token_ids[position - length : position])] = position
        self._num_indexed = len(token_ids)


def _continued(token_ids: Sequence[int], position: int, count: int) -> tuple[int, ...]:
    """From there to the end, and again: the text may be in its second round."""
    period = len(token_ids) - position
    return tuple(token_ids[position + offset % period] for offset in range(count))


class Speculation:
    """What the guesses for all sequences of an engine share: what they cost, how often they hit."""

    def __init__(self, cost: GuessCost) -> None:
        self.cost = cost
        self.rates = _Rates(_WEIGHT_OF_NEWEST_FOR_ALL)

    def begin(self, proposer: Proposer) -> "Guesser":
        """For a new sequence, which is expected to be like the others."""
        return Guesser(self, proposer)


class Guesser:
    """Guesses for one sequence: as many as are worth their cost."""

    def __init__(self, shared: Speculation, proposer: Proposer) -> None:
        self._shared = shared
        self._proposer = proposer
        self._rates = _Rates(_WEIGHT_OF_NEWEST, shared.rates)
        self._last = Proposal()
        self._num_tokens = 0

    def guess(self, token_ids: Sequence[int], *, num_sequences: int) -> list[int]:
        """What may follow the tokens, in a step with so many sequences. Called as they grow."""
        self._learn(token_ids[self._num_tokens :])
        self._last = self._proposer.propose(token_ids, MOST_GUESSES)
        self._num_tokens = len(token_ids)
        rate = self._rates.of(self._last.matched)
        count = worth(rate, self._shared.cost.base_tokens, num_sequences).num_guesses
        return list(self._last.token_ids[:count])

    def _learn(self, token_ids: Sequence[int]) -> None:
        for guess, token_id in zip(self._last.token_ids, token_ids, strict=False):
            is_right = guess == token_id
            self._rates.add(self._last.matched, is_right=is_right)
            self._shared.rates.add(self._last.matched, is_right=is_right)
            if not is_right:
                return


class _Rates:
    """How many of the latest guesses were right, for each number of tokens that matched."""

    def __init__(self, weight_of_newest: float, expected: "_Rates | None" = None) -> None:
        self._weight = weight_of_newest
        self._rates: dict[int, float] = {} if expected is None else dict(expected._rates)

    def of(self, matched: int) -> float:
        return self._rates.get(matched, _FIRST_RATE)

    def add(self, matched: int, *, is_right: bool) -> None:
        rate = self.of(matched)
        self._rates[matched] = rate + self._weight * (is_right - rate)
