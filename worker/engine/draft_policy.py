"""Decides how many guesses a draft model makes for a sequence, and when none at all.

What its guesses are worth is learnt from those that were made. Where they are worth nothing it does
not run, except to find out whether that is still so, for a small part of what all steps take.
"""

from collections.abc import Sequence

from worker.engine.guess_cost import MOST_SEQUENCES, GuessCost, worth

_FIRST_RATE = 0.8
_WEIGHT_OF_NEWEST = 1 / 8
_WEIGHT_OF_NEWEST_FOR_ALL = 1 / 16
_SHARE_FOR_TRIALS = 0.02  # of what steps take
_MOST_FOR_TRIALS = 1000.0  # tokens
_FIRST_ANSWER_TOKENS = 64.0
_WEIGHT_OF_NEWEST_ANSWER = 1 / 16


class DraftPolicy:
    """What the sequences of an engine share: how often guesses are right, what trials may cost."""

    def __init__(self, cost: GuessCost) -> None:
        self.cost = cost
        self.rate = _FIRST_RATE
        self.answer_tokens = _FIRST_ANSWER_TOKENS
        self._for_trials = 0.0

    def begin(self) -> "SequencePolicy":
        """For a new sequence, which is expected to be like the others."""
        return SequencePolicy(self)

    def stepped(self, num_tokens: int) -> None:
        """The model computed so many tokens in a step: a part of that may be spent on trials."""
        took = self.cost.base_tokens + num_tokens
        self._for_trials = min(_MOST_FOR_TRIALS, self._for_trials + _SHARE_FOR_TRIALS * took)

    def ended(self, num_generated: int) -> None:
        """An answer had so many tokens."""
        self.answer_tokens += _WEIGHT_OF_NEWEST_ANSWER * (num_generated - self.answer_tokens)

    def may_try(self, price: float) -> bool:
        """Whether so much was put aside; then it is spent."""
        if price > self._for_trials:
            return False
        self._for_trials -= price
        return True


class SequencePolicy:
    """How many guesses the next step should have for one sequence."""

    def __init__(self, shared: DraftPolicy) -> None:
        self._shared = shared
        self._rate = shared.rate
        self._is_trying = False

    def learn(self, guesses: Sequence[int], token_ids: Sequence[int]) -> None:
        """These tokens came where those were guessed."""
        for guess, token_id in zip(guesses, token_ids, strict=False):
            is_right = guess == token_id
            self._is_trying = False
            self._rate += _WEIGHT_OF_NEWEST * (is_right - self._rate)
            self._shared.rate += _WEIGHT_OF_NEWEST_FOR_ALL * (is_right - self._shared.rate)
            if not is_right:
                return

    def num_wanted(
        self, *, num_behind: int, num_generated: int, num_to_come: int, num_sequences: int
    ) -> int:
        """So many guesses, in a step with so many sequences.

        The draft model has not seen the last `num_behind` tokens: it has to save more, in what is
        expected to come of the answer, than it takes to catch up. An answer is expected to be as
        long as the others; one that is longer already, as long again. At most `num_to_come`
        tokens follow. Where guesses do not pay, there may be a single one on trial.
        """
        cost = self._shared.cost
        catching_up = num_behind * cost.catch_up_tokens
        found = worth(self._rate, cost.base_tokens, num_sequences, pass_tokens=cost.pass_tokens)
        expected = max(self._shared.answer_tokens - num_generated, num_generated)
        if found.num_guesses and catching_up <= found.saved * min(expected, num_to_come):
            return found.num_guesses
        if num_sequences > MOST_SEQUENCES:
            return 0
        if not self._is_trying:
            self._is_trying = self._shared.may_try(catching_up + cost.pass_tokens + 1)
        return int(self._is_trying)
