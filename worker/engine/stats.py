"""The engine's gauges and counters at one instant."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges: running to total_blocks. Counters since the start: the rest.

    Generated tokens are all that were made: of an answer with a stop string also the few that came
    before the engine heard of it, which no client gets and no usage counts. Cached prompt tokens
    are those that were not computed, of the `prompt_tokens`. A query is one admission of a sequence
    with a full block or more, a hit one that found a block or more. Guessed tokens were computed
    without being known, accepted ones of them were right.
    """

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    cached_prompt_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
