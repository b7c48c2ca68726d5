"""Ranks that outlive their replica's process."""

import asyncio
import subprocess
from collections.abc import Iterator

import pytest

from worker.node import orphans
from worker.node.child import Child
from worker.node.orphans import Orphans

pytestmark = pytest.mark.real


@pytest.fixture
def unkillable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two ranks that a driver holds up, as long as nobody but the test kills them."""
    monkeypatch.setattr(Child, "kill", lambda child: None)
    ranks = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield ranks
    for rank in ranks:
        rank.kill()
        rank.wait()


async def test_a_rank_that_does_not_end_holds_up_its_own_replica_and_none_that_ends_later(
    unkillable: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: asyncio.Queue[int] = asyncio.Queue()
    adopted = Orphans(gone.put_nowait)
    hangs, later = unkillable

    monkeypatch.setattr(orphans, "children", lambda names: [hangs.pid])
    assert adopted.adopt() == {hangs.pid}
    monkeypatch.setattr(orphans, "children", lambda names: [hangs.pid, later.pid])
    assert adopted.adopt() == {later.pid}
    assert adopted.adopt() == set()

    later.kill()
    assert await gone.get() == later.pid
    hangs.kill()
    assert await gone.get() == hangs.pid
