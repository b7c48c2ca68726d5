"""A smaller model that goes ahead of the one that answers, in the same blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from worker.engine.guess_cost import GuessCost
from worker.engine.guided import Matcher
from worker.engine.sampler import Sampler
from worker.engine.sequence import Sequence as TokenSequence
from worker.kernels.port import KVCache, Span
from worker.kernels.sampling import Draw, Unchosen
from worker.models.causal_model import CausalModel

_FREE_TOKENS = 2  # the last one, and the one before it where all guesses were right


@dataclass(slots=True, eq=False)
class Ahead:
    """Where the draft model stands with one sequence, and what it guesses to follow.

    Its cache holds the sequence's first `num_computed` tokens, in the blocks of `table`, and behind
    them `num_guessed` of the guesses, right or wrong.
    """

    sequence: TokenSequence
    sampler: Sampler
    matcher: Matcher | None
    guesses: list[int] = field(default_factory=list)
    table: list[int] | None = None
    num_computed: int = 0
    num_guessed: int = 0

    @property
    def has_caught_up(self) -> bool:
        return self.num_computed == self.sequence.num_tokens

    def take(self, choice: int | Unchosen) -> bool:
        """Adds a guess, unless its guide would end with it; whether another may follow."""
        if isinstance(choice, Unchosen):
            return False
        if self.matcher is not None:
            self.matcher.accept([choice])
            if self.matcher.is_finished:
                self.matcher.take_back(1)
                return False
        self.guesses.append(choice)
        return True

    def settle(self) -> None:
        """Leaves the guide where it was, and the guesses with the sequence."""
        if self.matcher is not None:
            self.matcher.take_back(len(self.guesses))
        self.sequence.draft_token_ids = self.guesses


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens of one sequence from a position on."""

    ahead: Ahead
    first: int
    token_ids: list[int]

    @property
    def end(self) -> int:
        return self.first + len(self.token_ids)


class DraftModel:
    """Owns the draft model and its keys and values. Used by the engine's thread.

    Its cache has a place for every block of the engine's pool, so that a sequence has one block
    table for both models. It computes no more than its guesses need, and so knows itself which
    blocks hold what: those that it filled, under the names that the prefix cache has for their
    tokens. A name means the same tokens always, so nothing is to be forgotten when a block is
    used again before it is written.
    """

    def __init__(
        self,
        model: CausalModel,
        cost: GuessCost,
        clock: Callable[[], float],
        *,
        block_size: int,
    ) -> None:
        self._model = model
        self._cost = cost
        self._clock = clock
        self._block_size = block_size
        self._cache: KVCache | None = None
        self._filled: dict[int, bytes] = {}  # names by block

    @property
    def context_tokens(self) -> int:
        return self._model.context_tokens

    def warm(self, *, num_blocks: int, lanes: int) -> None:
        """Reserves the cache."""
        if self._cache is None:
            self._cache = self._model.allocate_cache(
                num_blocks=num_blocks, block_size=self._block_size, lanes=lanes
            )

    def close(self) -> None:
        """Gives the cache back."""
        self._cache = None

    def follow(self, ahead: Ahead) -> int:
        """Drops the guesses; how many tokens before the sequence's last are not computed."""
        sequence = ahead.sequence
        if ahead.table is not sequence.block_table:
            ahead.table, ahead.num_computed = sequence.block_table, self._num_filled(sequence)
        else:
            came = sequence.token_ids[ahead.num_computed :]
            for guess, token_id in zip(ahead.guesses[: ahead.num_guessed], came, strict=False):
                if guess != token_id:
                    break
                self._advance(ahead, ahead.num_computed + 1)
        ahead.guesses, ahead.num_guessed = [], 0
        return max(0, sequence.num_tokens - 1 - ahead.num_computed)

    def guess(self, wanted: Sequence[tuple[Ahead, int]], *, catch_up_tokens: int) -> None:
        """Gives each sequence at most so many drafts, which its guide allows.

        Those that are far behind catch up by so many tokens in all; who is still behind then has
        no drafts. A guess is drawn where the answer's token will be, by the same number: the more
        the models agree on what is likely, the likelier they draw the same.
        """
        pieces = []
        for ahead, _ in wanted:
            self.follow(ahead)
            sequence = ahead.sequence
            first = min(ahead.num_computed, sequence.num_tokens - 1)
            end = min(sequence.num_tokens, first + _FREE_TOKENS + catch_up_tokens)
            catch_up_tokens -= max(0, end - first - _FREE_TOKENS)
            pieces.append(_Piece(ahead, first, sequence.token_ids[first:end]))
        logits = self._compute(pieces)
        going = [(ahead, most) for ahead, most in wanted if ahead.has_caught_up]
        while going:
            choices = self._choose([ahead for ahead, _ in going], logits)
            going = [
                (ahead, most)
                for (ahead, most), choice in zip(going, choices, strict=True)
                if ahead.take(choice) and len(ahead.guesses) < most
            ]
            if going:
                logits = self._compute([_last_guess(ahead) for ahead, _ in going])
        for ahead, _ in wanted:
            ahead.settle()

    def _compute(self, pieces: Sequence[_Piece]) -> torch.Tensor:
        """Logits [rows, vocabulary] of the last tokens of those that have caught up with it."""
        assert self._cache is not None, "warm() comes before the first guess"
        began = self._clock()
        token_ids: list[int] = []
        spans, sampled = [], []
        for piece in pieces:
            sequence = piece.ahead.sequence
            assert sequence.lane is not None
            count = len(piece.token_ids)
            spans.append(Span(piece.first, count, sequence.block_table, sequence.lane))
            token_ids += piece.token_ids
            if piece.end >= sequence.num_tokens:
                sampled.append(len(token_ids) - 1)
        logits = self._model.logits(token_ids, spans, sampled, self._cache)
        for piece in pieces:
            self._note(piece)
        self._cost.observe_pass(len(token_ids), len(pieces), self._clock() - began)
        return logits

    def _choose(self, aheads: Sequence[Ahead], logits: torch.Tensor) -> list[int | Unchosen]:
        draws: list[Draw] = []
        masks: list[torch.Tensor] = []
        for ahead in aheads:
            mask = None
            if ahead.matcher is not None:
                mask = len(masks)
                masks.append(torch.zeros(-(-self._model.vocabulary // 32), dtype=torch.int32))
                ahead.matcher.fill(masks[-1].data_ptr(), masks[-1].nbytes)
            draws.append(ahead.sampler.draw(ahead.guesses, mask=mask))
        return self._model.kernels.choose(logits, draws, torch.stack(masks) if masks else None)

    def _note(self, piece: _Piece) -> None:
        ahead, size = piece.ahead, self._block_size
        for block in ahead.sequence.block_table[piece.first // size : -(-piece.end // size)]:
            self._filled.pop(block, None)
        if piece.first < ahead.sequence.num_tokens:
            ahead.num_computed = piece.first
            self._advance(ahead, piece.end)
        else:
            ahead.num_guessed += 1

    def _advance(self, ahead: Ahead, num_computed: int) -> None:
        sequence, size = ahead.sequence, self._block_size
        full = slice(ahead.num_computed // size, num_computed // size)
        ahead.num_computed = num_computed
        names = zip(sequence.block_table[full], sequence.block_names[full], strict=False)
        self._filled.update(names)

    def _num_filled(self, sequence: TokenSequence) -> int:
        """Its first tokens that lie computed in its blocks."""
        count = 0
        for block, name in zip(sequence.block_table, sequence.block_names, strict=False):
            if self._filled.get(block) != name:
                break
            count += self._block_size
        return count


def _last_guess(ahead: Ahead) -> _Piece:
    position = ahead.sequence.num_tokens - 1 + len(ahead.guesses)
    return _Piece(ahead, position, ahead.guesses[-1:])
