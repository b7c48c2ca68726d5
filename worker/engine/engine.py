"""Continuous batching: every step schedules, runs, samples, and says what came of it."""

import time
from collections.abc import Callable

import torch

from infra.contracts.model_spec import EngineSettings
from infra.errors import ExecutionTimeout
from worker.engine.answers import Answers
from worker.engine.batch import Batch, Slice
from worker.engine.block_pool import BlockPool
from worker.engine.checks import check_request
from worker.engine.choice import Choice
from worker.engine.event import Embedded, Event, Failure, NewToken
from worker.engine.guess_cost import GuessCost
from worker.engine.guessing import DraftGuessing, Guessing, TextGuessing
from worker.engine.guided import Guides, GuideTokenizer, Matcher
from worker.engine.kv_size import cache_memory, kv_blocks
from worker.engine.pooling import Pools
from worker.engine.prefix_cache import PrefixCache
from worker.engine.prompt_scores import score_prompts
from worker.engine.request import (
    EmbeddingRequest,
    GenerationRequest,
    Guide,
    Request,
    refuse_too_long,
)
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.engine.stats import EngineStats
from worker.engine.step_cost import StepCost
from worker.kernels.port import KVCache, Span
from worker.kernels.sampling import Unchosen
from worker.models.causal_model import CausalModel


class Engine:
    """Owns the model, the KV cache and everything in flight. Used by one thread.

    `check`, `context_tokens` and `embedding_size` may be used by any.
    """

    def __init__(
        self,
        model: CausalModel,
        tokenizer: GuideTokenizer,
        settings: EngineSettings,
        clock: Callable[[], float] = time.monotonic,
        guess_cost: GuessCost | None = None,
        draft: CausalModel | None = None,
    ) -> None:
        """Raises Invalid for a KV cache that the machine has no memory for.

        The clock is that of the requests' deadlines. What guesses cost is measured, unless told.
        There is a draft model where the settings say that it makes the guesses.
        """
        self._model = model
        self._settings = settings
        self._clock = clock
        self._step_cost = StepCost()
        self._guessing = _guessing(settings, draft, self._step_cost, clock, guess_cost)
        self._pool = BlockPool(
            kv_blocks(
                settings,
                context_tokens=model.context_tokens,
                bytes_per_token=model.kv_bytes_per_token + self._guessing.kv_bytes_per_token,
                memory=cache_memory(model.kernels.free_bytes()),
            ),
            block_size=settings.block_size,
        )
        self._lanes = min(settings.max_batch_size, settings.token_budget)
        self._scheduler = Scheduler(
            self._pool,
            PrefixCache(self._pool, is_enabled=settings.prefix_cache),
            self._step_cost,
            max_running=self._lanes,
            token_budget=settings.token_budget,
        )
        self._guides = Guides(tokenizer, vocabulary=model.vocabulary)
        self._answers = Answers(model, self._guessing, eos_token_ids=tokenizer.eos_token_ids)
        self._pools = Pools(model)
        self._cache: KVCache | None = None
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_cached_prompt_tokens = 0
        self._num_guesses = 0
        self._num_right_guesses = 0

    @property
    def context_tokens(self) -> int:
        return self._model.context_tokens

    @property
    def embedding_size(self) -> int:
        return self._model.hidden_size

    def warm(self) -> None:
        """Reserves the KV cache: address space only, in well under a millisecond.

        No forward pass: the first prompt's would cost the same again, since the kernels that
        torch compiles at first use are made for one number of tokens each.
        """
        if self._cache is None:
            self._cache = self._model.allocate_cache(
                num_blocks=self._pool.total_blocks,
                block_size=self._settings.block_size,
                lanes=self._lanes,
            )
            self._guessing.warm(num_blocks=self._pool.total_blocks, lanes=self._lanes)

    def close(self) -> None:
        """Gives the KV cache back to the machine; no step may follow."""
        self._cache = None
        self._guessing.close()

    def check(self, request: Request) -> None:
        """Raises ContextLengthExceeded or Invalid for a request that can never run."""
        refuse_too_long(
            request,
            context_tokens=self.context_tokens,
            kv_tokens=self._pool.total_blocks * self._settings.block_size,
        )
        check_request(request, vocabulary=self._model.vocabulary)

    def compile(self, guide: Guide) -> Matcher:
        """What `submit` wants for a request with that guide; takes a while. Raises Invalid."""
        return self._guides.compile(guide)

    def submit(self, request: GenerationRequest, matcher: Matcher | None = None) -> None:
        """Queues a checked request; one with a guide comes with its matcher."""
        self._scheduler.add(self._answers.begin(request, matcher))

    def embed(self, request: EmbeddingRequest) -> None:
        """Queues a checked request."""
        sequence = Sequence(request, seed=0, pooling=self._settings.pooling)
        self._pools.begin(sequence)
        self._scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        """Forgets a request, if it is still in flight; its blocks are free at once."""
        if request_id in self._answers:
            self._scheduler.remove(self._answers.end(request_id))
        elif request_id in self._pools:
            self._scheduler.remove(self._pools.end(request_id))

    def has_work(self) -> bool:
        return self._scheduler.has_work()

    def step(self) -> list[Event]:
        """Computes one batch; what came of it for each sequence, in the order of its tokens."""
        began = self._clock()
        events: list[Event] = list(map(self._expire, self._scheduler.expired(now=began)))
        batch = self._guessing.fill(self._scheduler.schedule())
        if batch.slices:
            computing = self._clock()
            events += self._compute(batch)
            self._observe(batch, self._clock() - computing)
        return events

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            free_blocks=self._pool.free_blocks,
            total_blocks=self._pool.total_blocks,
            steps=self._num_steps,
            prompt_tokens=self._num_prompt_tokens,
            generated_tokens=self._num_generated_tokens,
            preemptions=self._scheduler.num_preemptions,
            cached_prompt_tokens=self._num_cached_prompt_tokens,
            prefix_queries=self._scheduler.num_prefix_queries,
            prefix_hits=self._scheduler.num_prefix_hits,
            guessed_tokens=self._num_guesses,
            accepted_tokens=self._num_right_guesses,
        )

    def check_integrity(self) -> None:
        """Asserts that no block leaks and nothing in flight is forgotten."""
        self._scheduler.check_integrity()
        in_flight = {sequence.request_id for sequence in self._scheduler.sequences()}
        assert in_flight == self._answers.request_ids() | self._pools.request_ids()

    def _observe(self, batch: Batch, seconds: float) -> None:
        if not batch.num_drafts:
            self._step_cost.observe(batch.num_tokens, len(batch.slices), seconds)
        self._guessing.observe(batch, seconds)

    def _compute(self, batch: Batch) -> list[Event]:
        sampled_states, scored_states, pooled_states = self._states(batch)
        self._scheduler.computed(batch)
        self._num_steps += 1
        sampled = batch.sampled
        choices = self._answers.choose(sampled, sampled_states)
        events: list[Event] = list(score_prompts(self._model, batch, scored_states))
        for piece, chosen in zip(sampled, choices, strict=True):
            events += self._go_on(piece, chosen)
        for event in self._pools.read(batch, pooled_states):
            self._end_embedding(event)
            events.append(event)
        return events

    def _states(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """[rows, hidden] where a token comes next, of prompts to be scored, and of vectors."""
        assert self._cache is not None, "warm() comes before the first step"
        token_ids: list[int] = []
        spans: list[Span] = []
        sampled: list[int] = []
        scored: list[int] = []
        pooled: list[int] = []
        for piece in batch.slices:
            sequence = piece.sequence
            offset = len(token_ids) - piece.first
            token_ids += piece.token_ids
            assert sequence.lane is not None
            spans.append(Span(piece.first, piece.count, sequence.block_table, sequence.lane))
            scored += [offset + position for position in piece.scored]
            sampled += [offset + position for position in piece.sampled]
            pooled += [offset + position for position in piece.pooled]
        wanted = sampled + scored + pooled
        states = self._model.states(token_ids, spans, wanted, self._cache)
        return states.split_with_sizes((len(sampled), len(scored), len(pooled)))

    def _expire(self, sequence: Sequence) -> Failure:
        self.abort(sequence.request_id)
        error = ExecutionTimeout(
            f"the request's deadline came after {sequence.num_generated_tokens} tokens of output"
        )
        return Failure(sequence.request_id, error)

    def _go_on(self, piece: Slice, choices: list[Choice | Unchosen]) -> list[NewToken | Failure]:
        """Takes a sequence on by the guesses that were right, and by the token after them."""
        sequence, guesses = piece.sequence, piece.drafts
        events: list[NewToken | Failure] = []
        for choice, guess in zip(choices, [*guesses, None], strict=True):
            events.append(self._append(sequence, choice))
            if events[-1].is_last or sequence.token_ids[-1] != guess:
                break
        num_right = len(events) - 1
        self._num_guesses += len(guesses)
        self._num_right_guesses += num_right
        if not events[-1].is_last:
            self._scheduler.accepted(sequence, num_right)
            self._answers.guess(sequence.request_id, num_sequences=self._scheduler.num_running)
        return events

    def _append(self, sequence: Sequence, choice: Choice | Unchosen) -> NewToken | Failure:
        """Takes a sequence one token on; it leaves when that was its last."""
        event = self._answers.append(sequence.request_id, choice)
        if isinstance(event, NewToken):
            self._num_generated_tokens += 1
            if sequence.num_generated_tokens == 1:
                self._count_prompt(sequence.num_prompt_tokens, event.cached_tokens)
        if event.is_last:
            self.abort(sequence.request_id)
        return event

    def _end_embedding(self, event: Embedded | Failure) -> None:
        sequence = self._pools.end(event.request_id)
        self._scheduler.remove(sequence)
        if isinstance(event, Embedded):
            self._count_prompt(sequence.num_prompt_tokens, event.embedding.cached_tokens)

    def _count_prompt(self, num_tokens: int, num_cached: int) -> None:
        self._num_prompt_tokens += num_tokens
        self._num_cached_prompt_tokens += num_cached


def _guessing(
    settings: EngineSettings,
    draft: CausalModel | None,
    step_cost: StepCost,
    clock: Callable[[], float],
    cost: GuessCost | None,
) -> Guessing:
    match settings.speculation:
        case "none":
            return Guessing()
        case "ngram":
            return TextGuessing(cost)
        case "draft":
            assert draft is not None, "the climb brings the draft model"
            return DraftGuessing(draft, step_cost, clock, block_size=settings.block_size, cost=cost)
