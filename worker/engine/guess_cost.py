"""What guesses cost, and how many of them are worth a place in the next step.

A guess costs a token of a step, and its share of what made it, and saves a step if it is right: it
pays where it is likely enough for what a step costs beside it.
"""

from dataclasses import dataclass

MOST_GUESSES = 6
MOST_SEQUENCES = 4  # six at a time gained nothing where most guesses were right

_LEAST_GAIN = 1.1

_USUAL_BASE_TOKENS = 8.0  # measured on two cores: four sequences take 1.3 times as long as one
_FEWEST_BASE_TOKENS, _MOST_BASE_TOKENS = 1.0, 20.0
_USUAL_SHARE_OF_DRAFT = 0.4  # of a step, before it is measured
_WEIGHT_OF_NEWEST_STEP = 1 / 32
_WEIGHT_OF_NEWEST_PASS = 1 / 8  # the first ones are slow, and there may be few
_MOST_TOKENS_OF_A_PASS = 2  # a sequence: its last token, and the one before if all was right


@dataclass(frozen=True, slots=True)
class Worth:
    """A number of guesses, and what they save of every token of a sequence, told in tokens."""

    num_guesses: int = 0
    saved: float = 0.0


def worth(rate: float, base_tokens: float, num_sequences: int, *, pass_tokens: float = 0) -> Worth:
    """The number of guesses that yields most tokens for what the step takes.

    None where that is next to nothing. A guess counts only if those before it are right, which each
    is at `rate`. Every sequence has its share of the step's base, and of the draft model's pass
    that makes one guess for each, so that there are fewer guesses the more of them run.
    """
    if num_sequences > MOST_SEQUENCES:
        return Worth()
    alone = base_tokens / num_sequences + 1
    of_a_guess = 1 + pass_tokens / num_sequences
    best, least = Worth(), alone / _LEAST_GAIN
    tokens = likely = 1.0
    for count in range(1, MOST_GUESSES + 1):
        likely *= rate
        tokens += likely
        of_a_token = (alone + count * of_a_guess) / tokens
        if of_a_token < least:
            best, least = Worth(count, alone - of_a_token), of_a_token
    return best


class GuessCost:
    """What steps and the passes of a draft model take, told in tokens of a step.

    Learnt from steps that only go on with answers, with guesses and without, and from all passes.
    """

    def __init__(self) -> None:
        self._plain = _Mean(_WEIGHT_OF_NEWEST_STEP)
        self._guessing = _Mean(_WEIGHT_OF_NEWEST_STEP)
        self._passes = _Mean(_WEIGHT_OF_NEWEST_PASS)
        self._catching_up = _Mean(_WEIGHT_OF_NEWEST_PASS)

    def observe(self, num_tokens: int, num_guesses: int, seconds: float) -> None:
        """A step of so many tokens, so many of them guesses, took so long."""
        (self._guessing if num_guesses else self._plain).add(num_tokens, seconds)

    def observe_pass(self, num_tokens: int, num_sequences: int, seconds: float) -> None:
        """The draft model computed so many tokens of so many sequences in that time."""
        is_short = num_tokens <= _MOST_TOKENS_OF_A_PASS * num_sequences
        (self._passes if is_short else self._catching_up).add(num_tokens, seconds)

    @property
    def base_tokens(self) -> float:
        """What a step takes beside its tokens: how many would take as long."""
        few, many = self._plain, self._guessing
        tokens, seconds = many.num_tokens - few.num_tokens, many.seconds - few.seconds
        if not few.num_tokens or tokens <= 0:
            return _USUAL_BASE_TOKENS
        if seconds <= 0:
            return _MOST_BASE_TOKENS
        base = few.seconds * tokens / seconds - few.num_tokens
        return min(max(base, _FEWEST_BASE_TOKENS), _MOST_BASE_TOKENS)

    @property
    def pass_tokens(self) -> float:
        """What the draft model takes for a token or two of each sequence."""
        if not self._passes.num_tokens or not self._token_s:
            return _USUAL_SHARE_OF_DRAFT * (self.base_tokens + 1)
        return self._passes.seconds / self._token_s

    @property
    def catch_up_tokens(self) -> float:
        """What the draft model takes for each token of a pass over many."""
        if not self._catching_up.num_tokens or not self._token_s:
            return _USUAL_SHARE_OF_DRAFT
        return self._catching_up.seconds / self._catching_up.num_tokens / self._token_s

    @property
    def _token_s(self) -> float:
        """Seconds of one token of a step; 0 before a step was seen."""
        seen = self._plain if self._plain.num_tokens else self._guessing
        return seen.seconds / (self.base_tokens + seen.num_tokens)


@dataclass(slots=True)
class _Mean:
    """Of recent steps, or passes, of one kind."""

    weight_of_newest: float
    num_tokens: float = 0.0
    seconds: float = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        weight = self.weight_of_newest if self.num_tokens else 1.0
        self.num_tokens += weight * (num_tokens - self.num_tokens)
        self.seconds += weight * (seconds - self.seconds)
