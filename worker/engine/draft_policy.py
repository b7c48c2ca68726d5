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
    """What the sequences of an engine share: how often guesses are right, what trials may cost.

    Where the likeliest token is taken they are right more often than where one is drawn.
    """

    def __init__(self, cost: GuessCost) -> None:
        self.cost = cost
        self.rates = dict.fromkeys((False, True), _FIRST_RATE)
        self.answer_tokens = _FIRST_ANSWER_TOKENS
        self._num_answers = 1
        self._for_trials = 0.0

    def begin(self, *, is_drawn: bool) -> "SequencePolicy":
        """For a new sequence, which is expected to be like the others."""
        return SequencePolicy(self, is_drawn=is_drawn)

    def learn(self, *, is_right: bool, is_drawn: bool) -> None:
        """A guess was right, or not, all those before it in its step being right."""
        rate = self.rates[is_drawn]
        self.rates[is_drawn] = rate + _WEIGHT_OF_NEWEST_FOR_ALL * (is_right - rate)

    def stepped(self, num_tokens: int) -> None:
        """The model computed so many tokens in a step: a part of that may be spent on trials."""
        took = self.cost.base_tokens + num_tokens
        self._for_trials = min(_MOST_FOR_TRIALS, self._for_trials + _SHARE_FOR_TRIALS * took)

    def ended(self, num_generated: int) -> None:
        """An answer had so many tokens."""
        self._num_answers += 1
        weight = max(_WEIGHT_OF_NEWEST_ANSWER, 1 / self._num_answers)
        self.answer_tokens += weight * (num_generated - self.answer_tokens)

    def may_try(self, price: float) -> bool:
        """Whether so much was put aside; then it is spent."""
        if price > self._for_trials:
            return False
        self._for_trials -= price
        return True


class SequencePolicy:
    """How many guesses the next step should have for one sequence."""

    def __init__(self, shared: DraftPolicy, *, is_drawn: bool) -> None:
        self._shared = shared
        self._is_drawn = is_drawn
        self._rate = shared.rates[is_drawn]
        self._is_trying = False

    def learn(self, guesses: Sequence[int], token_ids: Sequence[int]) -> None:
        """These tokens came where those were guessed."""
        for guess, token_id in zip(guesses, token_ids, strict=False):
            is_right = guess == token_id
            self._is_trying = False
            self._rate += _WEIGHT_OF_NEWEST * (is_right - self._rate)
            self._shared.learn(is_right=is_right, is_drawn=self._is_drawn)
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
