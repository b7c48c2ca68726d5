"""How long to wait before the next try, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off: `first_s`, then doubled, at most `most_s`."""

    first_s: float = 0.1
    most_s: float = 30.0

    def delay_s(self, failures: int, *, jitter: float = 0.0) -> float:
        """Seconds to wait after `failures` in a row (1 or more).

        `jitter` in [0, 1) shortens the wait by up to half, so that many do not return at once.
        """
        full = min(self.most_s, self.first_s * 2 ** min(failures - 1, 32))
        return float(full * (1 - jitter / 2))
