"""Answers in the making: how each next token is to be chosen, and what comes of the choice."""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from infra.errors import Invalid, PlatformError
from worker.engine.batch import Slice
from worker.engine.choice import Choice
from worker.engine.event import Ending, Failure, NewToken
from worker.engine.guessing import Drafting, Guessing
from worker.engine.guided import Matcher
from worker.engine.request import GenerationRequest, SamplingParams
from worker.engine.sampler import Row, Sampler, sample
from worker.engine.sequence import Sequence
from worker.kernels.sampling import Unchosen
from worker.models.causal_model import CausalModel

_FAILURES: dict[Unchosen, Callable[[], PlatformError]] = {
    Unchosen.NOT_FINITE: partial(
        PlatformError, "the model computed numbers that are not finite for this prompt"
    ),
    Unchosen.NOTHING_ALLOWED: partial(
        Invalid,
        "no token may come next: what guides the answer, its logit_bias and min_tokens forbid all",
    ),
}


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the scheduler knows of it, how it goes on, and what ends it."""

    sequence: Sequence
    sampler: Sampler
    end_token_ids: frozenset[int]
    matcher: Matcher | None
    drafting: Drafting

    def ending(self) -> Ending | None:
        """Whether its last token was the last of all, and why."""
        if self.sequence.token_ids[-1] in self.end_token_ids:
            return Ending.END_TOKEN
        if self.matcher is not None and self.matcher.is_finished:
            return Ending.GUIDE_COMPLETE
        return None if self.sequence.num_tokens_to_come else Ending.LENGTH


class Answers:
    """Owns the answers that are being made. Used by the engine's thread."""

    def __init__(
        self, model: CausalModel, guessing: Guessing, *, eos_token_ids: frozenset[int]
    ) -> None:
        self._model = model
        self._guessing = guessing
        self._eos_token_ids = eos_token_ids
        self._answers: dict[str, _Answer] = {}  # by request id

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._answers

    def begin(self, request: GenerationRequest, matcher: Matcher | None) -> Sequence:
        """For a new request; one with a guide comes with its matcher."""
        sampling = request.sampling
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        sequence = Sequence(request, seed)
        ends = self._end_token_ids(sampling)
        sampler = Sampler(
            sampling, seed=seed, prompt_token_ids=request.prompt_token_ids, end_token_ids=ends
        )
        drafting = self._guessing.begin(sequence, sampler, matcher)
        self._answers[request.request_id] = _Answer(sequence, sampler, ends, matcher, drafting)
        return sequence

    def end(self, request_id: str) -> Sequence:
        """Forgets a sequence, which is returned."""
        answer = self._answers.pop(request_id)
        answer.drafting.end()
        return answer.sequence

    def request_ids(self) -> set[str]:
        return set(self._answers)

    def choose(
        self, pieces: tuple[Slice, ...], states: torch.Tensor
    ) -> list[list[Choice | Unchosen]]:
        """Each piece's next token, and what would be the next after each of its guesses.

        `states` are [rows, hidden], of all their sampled positions in their order.
        """
        rows, masks = self._rows(pieces)
        logits = self._model.head(states)
        choices = iter(sample(self._model.kernels, logits, rows, masks))
        return [list(islice(choices, len(piece.sampled))) for piece in pieces]

    def append(self, request_id: str, choice: Choice | Unchosen) -> NewToken | Failure:
        """Takes an answer one token on; the last event says that it is still to end."""
        answer = self._answers[request_id]
        sequence, matcher = answer.sequence, answer.matcher
        if isinstance(choice, Unchosen):
            error = None if matcher is None or matcher.error is None else Invalid(matcher.error)
            return Failure(request_id, error or _FAILURES[choice]())
        is_first = sequence.num_generated_tokens == 0
        cached_tokens = (sequence.num_cached_tokens or 0) if is_first else 0
        sequence.token_ids.append(choice.token_id)
        answer.sampler.add(choice.token_id)
        if matcher is not None:
            matcher.accept([choice.token_id])
        return NewToken(request_id, choice, answer.ending(), cached_tokens)

    def guess(self, request_id: str, *, num_sequences: int) -> None:
        """What may follow, for the next step."""
        self._answers[request_id].drafting.go_on(num_sequences=num_sequences)

    def _end_token_ids(self, sampling: SamplingParams) -> frozenset[int]:
        """Tokens that end the answer."""
        own = frozenset[int]() if sampling.ignore_eos else self._eos_token_ids
        ends = own | sampling.stop_token_ids
        return frozenset(end for end in ends if end < self._model.vocabulary)

    def _rows(self, pieces: Iterable[Slice]) -> tuple[list[Row], torch.Tensor | None]:
        """How each next token is to be chosen, also after guesses; masks of those with a guide.

        int32 [guided rows, vocabulary / 32]
        """
        rows: list[Row] = []
        masks: list[torch.Tensor] = []
        for piece in pieces:
            answer = self._answers[piece.sequence.request_id]
            sampler, matcher, guesses = answer.sampler, answer.matcher, piece.drafts
            first_mask = None if matcher is None else len(masks)
            for count in range(len(guesses) + 1):
                mask = None if first_mask is None else first_mask + count
                rows.append(Row(sampler.draw(guesses[:count], mask=mask), sampler.num_logprobs))
            if matcher is not None:
                masks += self._masks(matcher, guesses)
        return rows, torch.stack(masks) if masks else None

    def _masks(self, matcher: Matcher, guesses: list[int]) -> torch.Tensor:
        """What may come next, and after each of the guesses; int32 [1 + guesses, words]."""
        words = -(-self._model.vocabulary // 32)
        masks = torch.zeros((len(guesses) + 1, words), dtype=torch.int32)
        for count, mask in enumerate(masks):
            matcher.fill(mask.data_ptr(), mask.nbytes)
            matcher.accept(guesses[count : count + 1])
        matcher.take_back(len(guesses))
        return masks
