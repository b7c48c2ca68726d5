"""How much of a prompt a step may compute without holding up those that are answering."""

from dataclasses import dataclass

_LONGEST_STEP = 2.5  # times a step without prompts; who reads notices gaps of three and more
_FEWEST_PROMPT_TOKENS = 4
_USUAL_BASE_TOKENS = 16.0  # measured on two cores: reading 135M weights once is 13 to 16 tokens
_WEIGHT_OF_NEWEST = 1 / 8
_MOST_OF_ONE = 2.0  # times what was expected: some steps are held up by what has no part in them
_DIGITS = 3  # binary ones: torch prepares its kernels anew for every number of tokens


@dataclass(slots=True)
class _Mean:
    """Of recent steps of one kind."""

    num_tokens: float = 0.0
    seconds: float = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        if not self.num_tokens:
            self.num_tokens, self.seconds = float(num_tokens), seconds
        expected = self.seconds * max(1.0, num_tokens / self.num_tokens)
        seconds = min(seconds, _MOST_OF_ONE * expected)
        self.num_tokens += _WEIGHT_OF_NEWEST * (num_tokens - self.num_tokens)
        self.seconds += _WEIGHT_OF_NEWEST * (seconds - self.seconds)


class StepCost:
    """What steps take: a base, mostly reading the weights, and the same again for every token.

    Steps that only go on with answers and others give two points of that line. The base is told in
    tokens: how many more would take as long.
    """

    def __init__(self) -> None:
        self._answering = _Mean()
        self._others = _Mean()

    def observe(self, num_tokens: int, num_sequences: int, seconds: float) -> None:
        """A step of so many tokens of so many sequences took so long."""
        kind = self._answering if num_tokens == num_sequences else self._others
        kind.add(num_tokens, seconds)

    def prompt_tokens(self, num_answering: int, *, num_waiting: int = 0) -> int:
        """The most a step may compute beside a token of each that is answering.

        Where more wait for their first token than are answering, so many times more: reading the
        weights once more for each few tokens of theirs would hold up everybody.
        """
        alone = num_answering + self._base_tokens()
        share = max(1.0, num_waiting / num_answering)
        most = max(_FEWEST_PROMPT_TOKENS, int((_LONGEST_STEP - 1) * alone * share))
        unit = 1 << max(0, most.bit_length() - _DIGITS)
        return most // unit * unit

    def _base_tokens(self) -> float:
        few, many = self._answering, self._others
        more_tokens, more_seconds = many.num_tokens - few.num_tokens, many.seconds - few.seconds
        if not few.num_tokens or more_tokens <= 0 or more_seconds <= 0:
            return _USUAL_BASE_TOKENS
        return max(0.0, few.seconds * more_tokens / more_seconds - few.num_tokens)
