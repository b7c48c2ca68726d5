"""How an engine comes by guesses of what follows: from the text, from a draft model, or not."""

from collections.abc import Callable
from typing import Protocol

from worker.engine.batch import Batch
from worker.engine.draft_model import Ahead, DraftModel
from worker.engine.draft_policy import DraftPolicy
from worker.engine.guess_cost import GuessCost
from worker.engine.guided import Matcher
from worker.engine.sampler import Sampler
from worker.engine.sequence import Sequence
from worker.engine.speculation import Guesser, NgramProposer, Speculation
from worker.engine.step_cost import StepCost
from worker.models.causal_model import CausalModel

_LEAST_COST_OF_TOKEN = 0.25  # of the model's own


class Drafting(Protocol):
    """Guesses for one sequence."""

    def go_on(self, *, num_sequences: int) -> None:
        """The sequence has new tokens: wants drafts, or has them, for a step with so many."""

    def end(self) -> None:
        """There will be no more."""


class Guessing:
    """Makes no guesses; others do what this one leaves out. Used by the engine's thread.

    Only guesses that are worth their place are wanted. The engine asks in the order of these
    methods.
    """

    kv_bytes_per_token = 0

    def warm(self, *, num_blocks: int, lanes: int) -> None:
        """Reserves what guesses need beside each block and lane."""

    def close(self) -> None:
        """Gives that back."""

    def begin(self, sequence: Sequence, sampler: Sampler, matcher: Matcher | None) -> Drafting:
        """For a new sequence."""
        return _NoDrafts()

    def fill(self, batch: Batch) -> Batch:
        """The batch with drafts in the places that it has for them, or with fewer places."""
        return batch

    def observe(self, batch: Batch, seconds: float) -> None:
        """The model took so long for the batch."""


class _NoDrafts:
    def go_on(self, *, num_sequences: int) -> None:
        return

    def end(self) -> None:
        return


class TextGuessing(Guessing):
    """Guesses that the text goes on as it did before."""

    def __init__(self, cost: GuessCost | None = None) -> None:
        self._speculation = Speculation(GuessCost() if cost is None else cost)

    def begin(self, sequence: Sequence, sampler: Sampler, matcher: Matcher | None) -> Drafting:
        return _TextDrafts(sequence, matcher, self._speculation.begin(NgramProposer()))

    def observe(self, batch: Batch, seconds: float) -> None:
        if batch.goes_on:
            self._speculation.cost.observe(batch.num_tokens, batch.num_drafts, seconds)


class _TextDrafts:
    def __init__(self, sequence: Sequence, matcher: Matcher | None, guesser: Guesser) -> None:
        self._sequence = sequence
        self._matcher = matcher
        self._guesser = guesser

    def go_on(self, *, num_sequences: int) -> None:
        sequence, matcher = self._sequence, self._matcher
        guesses = self._guesser.guess(sequence.token_ids, num_sequences=num_sequences)
        if guesses and matcher is not None:
            guesses = guesses[: matcher.count_allowed(guesses)]
        sequence.set_drafts(guesses)

    def end(self) -> None:
        return


class DraftGuessing(Guessing):
    """Guesses what a smaller model would answer."""

    def __init__(
        self,
        model: CausalModel,
        step_cost: StepCost,
        clock: Callable[[], float],
        *,
        block_size: int,
        cost: GuessCost | None = None,
    ) -> None:
        """The step's cost says how many tokens the draft model may catch up with at once."""
        cost = GuessCost() if cost is None else cost
        self._step_cost = step_cost
        self._policy = DraftPolicy(cost)
        self._model = DraftModel(model, cost, clock, block_size=block_size)
        self._aheads: dict[Sequence, Ahead] = {}
        self.kv_bytes_per_token = model.kv_bytes_per_token

    def warm(self, *, num_blocks: int, lanes: int) -> None:
        self._model.warm(num_blocks=num_blocks, lanes=lanes)

    def close(self) -> None:
        self._model.close()

    def begin(self, sequence: Sequence, sampler: Sampler, matcher: Matcher | None) -> Drafting:
        ahead = self._aheads[sequence] = Ahead(sequence, sampler, matcher)
        return _ModelDrafts(ahead, self._model, self._policy, end=self._end)

    def fill(self, batch: Batch) -> Batch:
        wanted = [(self._aheads[each.sequence], each.num_drafts) for each in batch.drafting]
        if not wanted:
            return batch
        self._model.guess(wanted, catch_up_tokens=self._room(batch))
        return batch.filled()

    def _room(self, batch: Batch) -> int:
        """How far the draft model may catch up: in what prompts leave of their share of a step."""
        prompts = batch.num_tokens - batch.num_drafts - len(batch.slices)
        room = max(0, self._step_cost.prompt_tokens(len(batch.slices)) - prompts)
        return int(room / max(_LEAST_COST_OF_TOKEN, self._policy.cost.catch_up_tokens))

    def observe(self, batch: Batch, seconds: float) -> None:
        self._policy.stepped(batch.num_tokens)
        if batch.goes_on:
            self._policy.cost.observe(batch.num_tokens, batch.num_drafts, seconds)

    def _end(self, ahead: Ahead) -> None:
        self._policy.ended(ahead.sequence.num_generated_tokens)
        del self._aheads[ahead.sequence]


class _ModelDrafts:
    def __init__(
        self,
        ahead: Ahead,
        model: DraftModel,
        policy: DraftPolicy,
        *,
        end: Callable[[Ahead], None],
    ) -> None:
        self._ahead = ahead
        self._model = model
        self._policy = policy.begin(is_drawn=ahead.sampler.is_drawn)
        self._end = end

    def go_on(self, *, num_sequences: int) -> None:
        ahead, sequence = self._ahead, self._ahead.sequence
        self._policy.learn(ahead.guesses, sequence.token_ids[ahead.num_computed :])
        wanted = self._policy.num_wanted(
            num_behind=self._model.follow(ahead),
            num_generated=sequence.num_generated_tokens,
            num_to_come=sequence.num_tokens_to_come,
            num_sequences=num_sequences,
        )
        room = self._model.context_tokens - sequence.num_tokens
        sequence.num_drafts_wanted = max(0, min(wanted, room))

    def end(self) -> None:
        self._end(self._ahead)
