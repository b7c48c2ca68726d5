"""The parts of a climb that streamed weights bring along."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infra.contracts.stage import Stage
from infra.contracts.worker_link import FromWorker, StageDone
from infra.paging import cold_bytes
from tests.node.test_boot import HandClock
from worker.boot import landings
from worker.boot.arrival import Arrival
from worker.boot.landings import Landings, available_bytes
from worker.boot.stages import StageTimer
from worker.weights.loader import open_weights


class Stream:
    """A stream whose last byte comes when it is finished, at the latest."""

    names: frozenset[str] = frozenset()
    origin = "file"

    def __init__(self, arrival: Arrival, clock: HandClock) -> None:
        self._arrival = arrival
        self._clock = clock

    def memory(self, name: str) -> memoryview:
        raise NotImplementedError

    def wait(self, name: str, start: int, stop: int) -> None: ...

    def finish(self) -> None:
        self._clock.at += 1
        self._arrival.on_progress(1.0)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("arrives_at", "weights_s", "engine_s"), [(103.0, 3.0, 3.0), (None, 6.0, 1.0)]
)
def test_the_stage_ends_with_the_last_byte_and_the_model_is_what_came_after_it(
    arrives_at: float | None, weights_s: float, engine_s: float
) -> None:
    clock, told = HandClock(), list[FromWorker]()
    stages = StageTimer(clock, told.append)
    arrival = Arrival(stages)
    clock.at = 101
    stages.part("headers")
    if arrives_at is not None:
        clock.at = arrives_at
        arrival.on_progress(1.0)
    clock.at = 105  # the model is built

    def end_weights(*, at: float, source: str) -> None:
        stages.done(Stage.WEIGHTS, at=at, source=source)

    arrival.end(Stream(arrival, clock), end_weights)
    stages.done(Stage.ENGINE)

    done = [message.timing for message in told if isinstance(message, StageDone)]
    assert [(timing.stage, timing.seconds) for timing in done] == [
        (Stage.WEIGHTS, weights_s),
        (Stage.ENGINE, engine_s),
    ]
    assert [timing.source for timing in done] == ["file", None]
    assert [part.name for part in done[0].parts] == ["headers", "stream"]
    assert [part.name for part in done[1].parts] == ["model", "proof"]
    assert done[1].started_at == done[0].ended_at


def test_memory_that_was_prepared_is_taken_once_if_it_is_large_enough() -> None:
    ready = Landings()
    ready.prepare(3 << 20)
    first, second = ready.take(1 << 20), ready.take(1 << 20)
    assert first is not None and len(first) == 3 << 20
    assert second is not None and len(second) == 1 << 20
    ready.prepare(1 << 20)
    larger = ready.take(2 << 20)
    assert larger is not None and len(larger) == 2 << 20


def test_memory_that_was_prepared_makes_place_for_a_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(300_000)}, path)
    ready = Landings()
    ready.prepare(5 << 20)
    spare = ready.spare()
    assert spare is not None and ready.spare() is None
    (place,) = spare.places([5 << 20])
    place[0] = place[path.stat().st_size - 1] = place[4 << 20] = 7

    weights = open_weights(tmp_path, lambda fraction: None, spare=spare)

    assert torch.equal(weights.take_integers("a", (300_000,)), torch.arange(300_000))
    assert [place[0], place[path.stat().st_size - 1], place[4 << 20]] == [0, 0, 7]
    ready.prepare(1 << 20)
    ready.prepare(0)
    assert ready.spare() is None, "nothing is cold any more"


def test_what_of_a_file_is_not_in_memory_is_known(tmp_path: Path) -> None:
    read, hole, empty = (tmp_path / name for name in ("read", "hole", "empty"))
    read.write_bytes(bytes(5000))
    empty.touch()
    with hole.open("wb") as file:
        file.truncate((1 << 30) + 5000)

    assert [cold_bytes(path) for path in (read, hole, empty)] == [0, (1 << 30) + 5000, 0]
    with pytest.raises(OSError, match="none"):
        cold_bytes(tmp_path / "none")


def test_memory_that_a_climb_takes_while_it_is_made_is_not_given_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    being_made, is_taken = threading.Event(), threading.Event()
    rested: list[bool] = []

    class Slow(landings.Landing):
        def touch(self) -> None:
            being_made.set()
            is_taken.wait()

        def rest(self) -> None:
            rested.append(True)

    monkeypatch.setattr(landings, "Landing", Slow)
    ready = Landings()
    making = threading.Thread(target=ready.prepare, args=(1 << 20,))
    making.start()
    being_made.wait()
    assert ready.take(1 << 20) is not None
    is_taken.set()
    making.join()
    assert not rested  # its pages may hold bytes that have arrived


def test_no_memory_is_taken_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Landings().take(1 << 50) is None
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(landings, "_CGROUP", tmp_path)
    assert available_bytes() == 2_000_000
    assert Landings().take(1_600_001) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() > 2_000_000
    monkeypatch.setattr(landings, "_MEMINFO", tmp_path / "none")
    assert available_bytes() == 0 and Landings().take(1) is None
