"""How large the KV cache is made."""

import pytest

from infra.contracts.model_spec import EngineSettings
from infra.errors import Invalid
from worker.engine.kv_size import CacheMemory, cache_memory, host_memory_bytes, kv_blocks

GIB = 1 << 30


def blocks(memory_bytes: int = 64 * GIB, context_tokens: int = 8192, **settings: int) -> int:
    return kv_blocks(
        EngineSettings(**settings),
        context_tokens=context_tokens,
        bytes_per_token=23_040,
        memory=CacheMemory(memory_bytes, share=0.25),
    )


def test_by_default_a_whole_batch_of_moderate_sequences_fits() -> None:
    assert blocks() * 16 == 32 * 2048
    assert blocks(context_tokens=512) * 16 == 32 * 512
    assert blocks(max_batch_size=2) * 16 == 8192  # one of full length at least
    assert blocks(block_size=64) * 64 == 32 * 2048


def test_it_takes_no_more_than_a_quarter_of_the_memory() -> None:
    assert blocks(memory_bytes=GIB) == GIB // 4 // (23_040 * 16)
    assert blocks(memory_bytes=1000) == 1


def test_settings_are_followed_unless_the_machine_is_too_small() -> None:
    assert blocks(kv_cache_tokens=1000) == 62
    assert blocks(kv_cache_tokens=16, block_size=64) == 1
    with pytest.raises(Invalid, match="KV cache"):
        blocks(kv_cache_tokens=1 << 26, memory_bytes=GIB)


def test_on_a_device_most_of_what_is_left_may_be_taken() -> None:
    assert cache_memory(GIB) == CacheMemory(GIB, share=0.8)
    assert cache_memory(None) == CacheMemory(host_memory_bytes(), share=0.25)


def test_this_machine_has_some_memory() -> None:
    assert host_memory_bytes() > 1 << 28
