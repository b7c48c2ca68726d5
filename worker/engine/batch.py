"""What one step computes."""

from dataclasses import dataclass

from worker.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """The next `count` tokens of one sequence, from `first` on."""

    sequence: Sequence
    first: int
    count: int

    @property
    def catches_up(self) -> bool:
        """Its last token is the sequence's last, so that its logits give the next token."""
        return self.first + self.count == self.sequence.num_tokens

    @property
    def scored(self) -> range:
        """The positions whose logits are wanted because the prompt's next token is known."""
        sequence = self.sequence
        if not sequence.wants_prompt_logits:
            return range(0)
        return range(
            max(self.first, sequence.num_scored_tokens),
            min(self.first + self.count, sequence.num_prompt_tokens - 1),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Slices in order of arrival; a sequence appears once."""

    slices: tuple[Slice, ...]

    @property
    def num_tokens(self) -> int:
        return sum(piece.count for piece in self.slices)

    @property
    def sampled(self) -> tuple[Slice, ...]:
        """The slices that yield a token."""
        return tuple(piece for piece in self.slices if piece.catches_up)
