from hashlib import sha256
from pathlib import Path

import orjson
import pytest

from infra.contracts.stage import Came, Moved
from infra.errors import ImageInvalid
from infra.registry.reference import Reference
from snapshotter.blob.blob import Blob
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.starts import Starts
from snapshotter.blob.store import ChunkStore
from snapshotter.registry.referrers import listed_beside
from snapshotter.trace.files import TraceFiles
from snapshotter.trace.shared import fetch_traces, push_trace
from snapshotter.trace.trace import Recording, Touch, Trace, better
from tests.snapshotter.images import add_image
from tests.snapshotter.makers import raw_blob
from tests.snapshotter.registry_server import Clients, registry_server
from tests.snapshotter.scripted import ScriptedSource
from tests.snapshotter.tars import layer_tar


def named(text: str) -> str:
    return f"sha256:{sha256(text.encode()).hexdigest()}"


IMAGE, BASE, TOP = named("image"), named("base"), named("top")
PINNED = Reference("r.io", "model", None, IMAGE)
PARTS = [bytes([65 + number]) * 1000 for number in range(10)]


class World:
    """A node with the two layers of an image, and a clock that a test turns."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.told: list[Trace] = []
        self.store = ChunkStore(folder / "chunks", capacity_bytes=1 << 30, boot_id="boot")
        self.fetcher = Fetcher(self.store, num_workers=3, background_bytes_per_s=1e12)
        self.starts = Starts(
            TraceFiles(folder / "traces"),
            on_new_trace=lambda _, trace: self.told.append(trace),
            now=lambda: self.now,
        )
        self.sources: dict[str, ScriptedSource] = {}
        self.blobs: dict[str, Blob] = {}

    def open(self, layer: str) -> Blob:
        ref, data = raw_blob([layer.encode() + part for part in PARTS])
        self.sources[layer] = ScriptedSource(data)
        blob = Blob(
            ref,
            [self.sources[layer]],
            self.fetcher,
            on_touch=lambda _, chunk: self.starts.touched(layer, chunk),
            on_land=lambda flight: self.starts.landed(layer, flight),
        )
        self.blobs[layer] = blob
        self.starts.opened(layer, blob)
        return blob

    def read(self, layer: str, *chunks: int) -> None:
        for index in chunks:
            self.blobs[layer].read(self.blobs[layer].ref.table[index].offset, 10)

    def settle(self, layer: str) -> None:
        """Waits for what is on its way."""
        while pending := list(self.fetcher._flights.values()):
            for flight in pending:
                assert flight.landed.wait(60)

    def asked(self, layer: str) -> set[int]:
        return {index for request in self.sources[layer].requests for index in request}

    def close(self) -> None:
        self.fetcher.close()
        self.store.close()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.close()


def touches(*pairs: tuple[str, int]) -> tuple[Touch, ...]:
    return tuple(Touch(layer, chunk) for layer, chunk in pairs)


def test_a_start_is_recorded_in_the_order_of_first_touches_until_it_is_ready(world, tmp_path):
    world.starts.starting(PINNED, [BASE, TOP])
    world.open(BASE)
    world.open(TOP)

    world.read(BASE, 3, 1)
    world.read(TOP, 7)
    world.read(BASE, 3, 5)
    world.starts.ready(IMAGE)
    world.read(TOP, 9)

    expected = touches((BASE, 3), (BASE, 1), (TOP, 7), (BASE, 5))
    assert TraceFiles(tmp_path / "traces").find(IMAGE) == Trace(IMAGE, "", expected)
    assert world.told == [Trace(IMAGE, "", expected)]


def test_the_next_node_fetches_what_the_last_start_touched_and_nothing_else(world, tmp_path):
    TraceFiles(tmp_path / "traces").keep(Trace(IMAGE, "", touches((BASE, 3), (TOP, 7), (TOP, 1))))
    world.starts.starting(PINNED, [BASE, TOP])

    world.open(BASE)
    world.settle(BASE)
    assert world.asked(BASE) == set()  # the trace speaks of a layer that is not open yet
    world.open(TOP)
    world.settle(TOP)

    assert world.asked(BASE) == {3}
    assert world.asked(TOP) == {1, 7}


def test_the_rest_is_fetched_only_after_ready(world):
    world.starts.starting(PINNED, [BASE])
    world.open(BASE)
    world.read(BASE, 2)
    world.settle(BASE)
    assert world.asked(BASE) == {2}

    world.starts.ready(IMAGE)
    world.settle(BASE)

    assert world.asked(BASE) == set(range(10))


def test_what_there_is_no_room_for_is_not_fetched_in_the_background(tmp_path):
    world = World(tmp_path)
    world.store._capacity_bytes = 5000
    world.starts.starting(PINNED, [BASE])
    world.open(BASE)
    world.read(BASE, 2)

    world.starts.ready(IMAGE)
    world.settle(BASE)

    assert world.asked(BASE) == {2}
    world.close()


def test_a_start_that_nobody_calls_ready_ends_when_it_is_quiet(world, tmp_path):
    world.starts.starting(PINNED, [BASE])
    world.open(BASE)
    world.now = 50.0
    world.starts.end_quiet()
    world.read(BASE, 4)
    world.now = 60.0
    world.starts.end_quiet()
    assert TraceFiles(tmp_path / "traces").find(IMAGE) is None

    world.now = 71.0
    world.starts.end_quiet()

    assert TraceFiles(tmp_path / "traces").find(IMAGE) == Trace(IMAGE, "", touches((BASE, 4)))


def test_a_second_container_of_an_image_that_is_starting_does_not_begin_anew(world):
    world.starts.starting(PINNED, [BASE])
    world.open(BASE)
    world.read(BASE, 4)
    world.starts.starting(PINNED)
    world.read(BASE, 5)

    world.starts.ready(IMAGE)

    assert world.told == [Trace(IMAGE, "", touches((BASE, 4), (BASE, 5)))]


def test_a_start_that_says_what_it_runs_is_not_over_while_it_is_quiet(world, tmp_path):
    world.starts.starting(PINNED, [BASE])  # the pull
    world.open(BASE)
    world.starts.starting(PINNED, [BASE], "serve")
    world.read(BASE, 4)
    world.starts.starting(PINNED, [BASE])  # somebody pulls it again, or looks into it
    world.now = 500.0
    world.starts.end_quiet()
    world.settle(BASE)
    assert world.asked(BASE) == {4}

    world.starts.ready(IMAGE, "serve")
    world.settle(BASE)

    assert world.told == [Trace(IMAGE, "serve", touches((BASE, 4)))]
    assert world.asked(BASE) == set(range(10))


def test_a_start_that_is_never_called_ready_ends_all_the_same(world):
    world.starts.starting(PINNED, [BASE], "serve")
    world.open(BASE)
    world.read(BASE, 4)
    world.now = 601.0

    world.starts.end_quiet()

    assert world.told == [Trace(IMAGE, "serve", touches((BASE, 4)))]


def test_two_programs_of_an_image_are_recorded_apart_and_the_last_lets_the_rest_be_fetched(world):
    for entrypoint in ("serve", "train"):
        world.starts.starting(PINNED, [BASE], entrypoint)
    world.open(BASE)
    world.read(BASE, 4)
    world.starts.ready(IMAGE, "serve")
    world.read(BASE, 8)
    world.settle(BASE)
    assert world.asked(BASE) == {4, 8}

    world.starts.ready(IMAGE, "train")
    world.settle(BASE)

    assert world.told == [
        Trace(IMAGE, "serve", touches((BASE, 4))),
        Trace(IMAGE, "train", touches((BASE, 4), (BASE, 8))),
    ]
    assert world.asked(BASE) == set(range(10))


def test_a_container_that_starts_is_told_what_it_has_read_and_from_where(world):
    world.open(BASE)
    size = world.blobs[BASE].ref.table[0].length
    world.read(BASE, 1)
    world.starts.starting(PINNED, [BASE], "serve", "container")

    world.read(BASE, 1, 5, 3, 5)
    read = world.starts.read("container")
    world.starts.started("container")
    world.starts.ready(IMAGE, "serve")
    world.settle(BASE)

    assert read is not None
    assert read.came == (
        Came(source="origin", bytes=2 * size),
        Came(source="cache", bytes=size),
    )
    assert world.starts.read("container") is None


def test_what_is_fetched_in_the_background_counts_for_no_start(world):
    world.starts.starting(PINNED, [BASE], "serve")
    world.open(BASE)
    world.starts.starting(PINNED, [BASE], "train", "container")
    world.blobs[BASE].fill()
    world.settle(BASE)

    assert world.starts.read("container") == Moved(came=(), seconds=0)


def test_an_image_that_is_pulled_and_not_started_is_not_fetched(world):
    world.starts.starting(PINNED, [BASE])
    world.open(BASE)
    world.now = 10_000.0
    world.starts.end_quiet()
    world.settle(BASE)
    assert world.asked(BASE) == set()


def test_each_program_of_an_image_has_a_trace_of_its_own(world, tmp_path):
    files = TraceFiles(tmp_path / "traces")
    files.keep(Trace(IMAGE, "serve", touches((BASE, 1))))
    files.keep(Trace(IMAGE, "train", touches((BASE, 2))))
    world.open(BASE)

    world.starts.starting(PINNED, [BASE], "serve")
    world.settle(BASE)

    assert world.asked(BASE) == {1}
    newest = files.find(IMAGE)
    assert newest is not None
    assert newest.entrypoint == "train"
    assert files.find(IMAGE, "other") is None


def test_a_layer_that_another_image_opened_counts_for_both(world, tmp_path):
    other = named("other image")
    world.starts.starting(PINNED, [BASE])
    world.open(BASE)
    world.starts.ready(IMAGE)

    world.starts.starting(PINNED.at(other), [BASE, TOP])
    world.open(TOP)
    world.read(BASE, 5)
    world.read(TOP, 6)
    world.starts.ready(other)

    found = TraceFiles(tmp_path / "traces").find(other)
    assert found is not None
    assert found.touches == touches((BASE, 5), (TOP, 6))


def test_an_image_whose_layers_are_gone_is_forgotten(world):
    world.starts.starting(PINNED, [BASE])
    world.open(BASE)
    world.starts.closed(BASE)

    world.starts.ready(IMAGE)

    assert world.told == []


def test_a_start_that_the_page_cache_served_does_not_replace_one_that_it_did_not():
    cold = Trace(IMAGE, "", touches(*((BASE, chunk) for chunk in range(10))))
    warm = Trace(IMAGE, "", touches((BASE, 1), (BASE, 2)))
    grown = Trace(IMAGE, "", touches(*((BASE, chunk) for chunk in range(6))))

    assert better(None, warm) is warm
    assert better(cold, warm) is cold
    assert better(cold, grown) is grown


def test_a_recording_is_bounded(monkeypatch):
    monkeypatch.setattr("snapshotter.trace.trace.MOST_TOUCHES", 3)
    recording = Recording(IMAGE, "", [BASE], now=0)
    for chunk in range(10):
        recording.touch(BASE, chunk, now=1)
    assert len(recording.trace().touches) == 3


VALID = {"image": IMAGE, "entrypoint": "", "layers": [BASE], "touches": [[0, 5]]}


def test_a_trace_is_the_same_after_the_wire():
    trace = Trace(IMAGE, "serve", touches((BASE, 3), (TOP, 0), (BASE, 1)))
    assert Trace.parse(trace.packed()) == trace
    assert Trace.parse(orjson.dumps(VALID)).touches == touches((BASE, 5))


@pytest.mark.parametrize(
    "change",
    [
        {"image": "latest"},
        {"image": 5},
        {"entrypoint": 5},
        {"entrypoint": "x" * 5000},
        {"layers": ["../../etc"]},
        {"layers": None},
        {"touches": [[1, 5]]},
        {"touches": [[-1, 5]]},
        {"touches": [[0, -5]]},
        {"touches": [[0, "5"]]},
        {"touches": [[0]]},
        {"touches": 5},
    ],
)
def test_a_trace_that_lies_is_refused(change):
    with pytest.raises(ImageInvalid):
        Trace.parse(orjson.dumps(VALID | change))


def test_chunks_that_a_layer_has_not_are_not_asked_for(world, tmp_path):
    TraceFiles(tmp_path / "traces").keep(Trace(IMAGE, "", touches((BASE, 3), (BASE, 99999))))
    world.starts.starting(PINNED, [BASE])
    world.open(BASE)
    world.settle(BASE)
    assert world.asked(BASE) == {3}


def test_a_damaged_file_is_no_trace(tmp_path):
    files = TraceFiles(tmp_path)
    files.keep(Trace(IMAGE, "", touches((BASE, 3))))
    next(tmp_path.glob("*.trace")).write_bytes(b"{")

    assert files.find(IMAGE) is None
    files.keep(Trace(IMAGE, "", touches((BASE, 4))))
    assert files.find(IMAGE) is not None


@pytest.mark.parametrize("lists_referrers", [True, False])
def test_a_trace_travels_beside_its_image(lists_referrers):
    clients = Clients()
    with registry_server(lists_referrers=lists_referrers) as server:
        image = add_image(server, [layer_tar({"a": b"x"})])
        assert image.digest is not None
        trace = Trace(image.digest, "", touches((BASE, 3)))

        push_trace(clients(), image, trace)

        listed = listed_beside(clients(), image, image.digest)
        assert fetch_traces(clients(), image, image.digest, listed) == [trace]
        assert fetch_traces(clients(), image, named("another"), listed) == []
        clients.close()
