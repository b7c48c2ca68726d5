"""What the soak calls a leak."""

from dataclasses import replace

import pytest

from benchmarks.soak import MOST_GROWTH_BYTES, Checkpoint, soak, verdict
from tests.engine.tiny import load_model, make_engine, write_model

CLEAN = Checkpoint(100, 1.0, 300 << 20, tasks=1, free_blocks=64, total_blocks=64)


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (CLEAN, ""),
        (replace(CLEAN, memory_bytes=CLEAN.memory_bytes + MOST_GROWTH_BYTES), ""),
        (replace(CLEAN, memory_bytes=CLEAN.memory_bytes + 2 * MOST_GROWTH_BYTES), "memory grew"),
        (replace(CLEAN, tasks=3), "2 tasks are left"),
        (replace(CLEAN, free_blocks=60), "4 blocks are not free"),
    ],
)
def test_whatever_is_left_at_the_last_checkpoint_is_named(last: Checkpoint, says: str) -> None:
    assert verdict([CLEAN, last]).startswith(says)
    assert bool(verdict([CLEAN, last])) == bool(says)


@pytest.mark.real
async def test_a_short_soak_leaves_no_task_and_no_block(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    engine = make_engine(load_model(write_model(tmp_path_factory.mktemp("soak") / "tiny")))

    seen = await soak(engine, requests=200, most_s=30)

    assert [each.requests for each in seen] == list(range(20, 201, 20))
    assert {(each.tasks, each.free_blocks) for each in seen} == {(seen[0].tasks, 64)}
