"""How long a source is waited for, and how often it is asked again."""

from dataclasses import dataclass
from typing import Final

from infra.backoff import Backoff

_BACKOFF: Final = Backoff(first_s=0.1, most_s=5.0)


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds of one download; times in seconds.

    `failures` is the budget of the whole download, to which every chunk that arrives adds a tenth:
    a source that fails now and then is put up with, one that only fails is not.
    """

    connect_s: float = 5.0
    stall_s: float = 15.0  # without a byte
    hedge_s: float = 1.0  # a chunk that takes longer, and four times the median, is asked for twice
    slowest_bytes_s: int = 256 << 10  # an attempt below this is broken off
    attempts: int = 8  # of one chunk in a row
    failures: float = 24.0
    backoff: Backoff = _BACKOFF

    def attempt_s(self, size: int) -> float:
        """The longest that an attempt for so many bytes may take."""
        return self.stall_s + size / self.slowest_bytes_s


PATIENT: Final = Patience()
