"""Which token a sequence got next, and the number that decides where a draw falls."""

import hashlib
import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """A token and, where asked for, its log-probability and the likeliest tokens with theirs."""

    token_id: int
    logprob: float = math.nan
    top: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on nothing else: the same for a request in any batch."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)
