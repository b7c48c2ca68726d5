"""What one step computes."""

from dataclasses import dataclass, replace

from worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """The next `count` tokens of one sequence, from `first` on.

    The last `num_drafts` of them are the first of its drafts, after all tokens that it has. Where
    drafts are made for the step, there are places for them before there are drafts.
    """

    sequence: Sequence
    first: int
    count: int
    num_drafts: int = 0

    @property
    def num_known(self) -> int:
        """Its tokens that are no drafts."""
        return self.count - self.num_drafts

    @property
    def token_ids(self) -> list[int]:
        sequence = self.sequence
        known = sequence.token_ids[self.first : self.first + self.num_known]
        return known + self.drafts if self.num_drafts else known

    @property
    def drafts(self) -> list[int]:
        return self.sequence.draft_token_ids[: self.num_drafts]

    def filled(self) -> "Slice":
        """Without places for drafts that the sequence does not have."""
        missing = max(0, self.num_drafts - len(self.sequence.draft_token_ids))
        return replace(self, count=self.count - missing, num_drafts=self.num_drafts - missing)

    @property
    def catches_up(self) -> bool:
        """It has the sequence's last token, so that its logits give the next token."""
        return self.first + self.num_known == self.sequence.num_tokens

    @property
    def yields_token(self) -> bool:
        return self.catches_up and self.sequence.pooling is None

    @property
    def sampled(self) -> range:
        """The positions whose logits give the next token, and one more for each draft."""
        end = self.first + self.count
        return range(end - 1 - self.num_drafts if self.yields_token else end, end)

    @property
    def scored(self) -> range:
        """The positions whose logits are wanted because the prompt's next token is known."""
        sequence = self.sequence
        if not sequence.wants_prompt_logits:
            return range(0)
        return range(
            max(self.first, sequence.num_read_tokens),
            min(self.first + self.num_known, sequence.num_prompt_tokens - 1),
        )

    @property
    def pooled(self) -> range:
        """The positions whose states the prompt's vector is made of."""
        sequence = self.sequence
        if sequence.pooling is None:
            return range(0)
        is_last = sequence.pooling == "last"
        first = sequence.num_prompt_tokens - 1 if is_last else sequence.num_read_tokens
        return range(max(self.first, first), self.first + self.count)


@dataclass(frozen=True, slots=True)
class Batch:
    """Slices in order of priority, then of arrival; a sequence appears once."""

    slices: tuple[Slice, ...]

    @property
    def num_tokens(self) -> int:
        return sum(piece.count for piece in self.slices)

    @property
    def num_drafts(self) -> int:
        return sum(piece.num_drafts for piece in self.slices)

    @property
    def sampled(self) -> tuple[Slice, ...]:
        """The slices that yield tokens."""
        return tuple(piece for piece in self.slices if piece.yields_token)

    @property
    def drafting(self) -> tuple[Slice, ...]:
        """The slices that have places for drafts."""
        return tuple(piece for piece in self.slices if piece.num_drafts)

    @property
    def goes_on(self) -> bool:
        """It computes no prompts: a token of each, and drafts."""
        return self.num_tokens - self.num_drafts == len(self.slices)

    def filled(self) -> "Batch":
        """Without places for drafts that there are not."""
        return Batch(tuple(piece.filled() for piece in self.slices))
