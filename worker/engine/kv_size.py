"""How many blocks the KV cache gets."""

import os
from dataclasses import dataclass
from pathlib import Path

from infra.contracts.model_spec import EngineSettings
from infra.errors import Invalid

_TOKENS_PER_SEQUENCE = 2048  # what a sequence may grow to on average before others are preempted


@dataclass(frozen=True, slots=True)
class CacheMemory:
    """Where a KV cache can lie, and what part of it one may take that nobody asked for."""

    num_bytes: int
    share: float


def kv_blocks(
    settings: EngineSettings, *, context_tokens: int, bytes_per_token: int, memory: CacheMemory
) -> int:
    """Blocks for as many tokens as the settings say.

    Where they say nothing: a whole batch of moderately long sequences, within the memory's share.

    Raises Invalid when the settings ask for more than there is.
    """
    block_bytes = bytes_per_token * settings.block_size
    if settings.kv_cache_tokens is not None:
        blocks = max(1, settings.kv_cache_tokens // settings.block_size)
        if blocks * block_bytes > memory.num_bytes:
            raise Invalid(
                f"a KV cache of {settings.kv_cache_tokens} tokens takes {blocks * block_bytes} "
                f"bytes, more than the machine's {memory.num_bytes}",
                hint="lower engine.kv_cache_tokens",
                param="engine.kv_cache_tokens",
            )
        return blocks
    wanted = settings.max_batch_size * min(context_tokens, _TOKENS_PER_SEQUENCE)
    wanted = max(wanted, context_tokens)
    affordable = int(memory.num_bytes * memory.share) // block_bytes
    return max(1, min(-(-wanted // settings.block_size), affordable))


def cache_memory(free_bytes: int | None) -> CacheMemory:
    """Of a device with as much left, where weights are; None for the host.

    What is reserved on the host is not taken: pages are claimed as blocks are first written. On a
    device all of it is, and what a step computes needs the rest.
    """
    if free_bytes is None:
        return CacheMemory(host_memory_bytes(), share=0.25)
    return CacheMemory(free_bytes, share=0.8)


def host_memory_bytes() -> int:
    """The machine's memory, or what this process's control group may use of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical
