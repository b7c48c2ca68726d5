"""How a sequence's next token is to be chosen, and which one was."""

import hashlib
import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Draw:
    """`uniform` in [0, 1) decides where temperature is not 0; see SamplingParams for the others."""

    temperature: float
    top_p: float
    uniform: float
    num_logprobs: int | None


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
