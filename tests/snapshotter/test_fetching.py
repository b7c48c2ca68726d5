import errno
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from snapshotter.blob.blob import Blob
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.flight import MOST_RUN_BYTES, Agenda, Flight, Priority, Target
from snapshotter.blob.store import ChunkStore
from tests.snapshotter.makers import raw_blob
from tests.snapshotter.scripted import ScriptedSource

PARTS = [bytes([65 + number]) * (1000 + number) for number in range(12)]
REF, DATA = raw_blob(PARTS)


@pytest.fixture
def store(tmp_path):
    store = ChunkStore(tmp_path, capacity_bytes=1 << 30, boot_id="boot")
    yield store
    store.close()


@pytest.fixture
def fetcher(store):
    fetcher = Fetcher(store, num_workers=4, background_bytes_per_s=1e12)
    yield fetcher
    fetcher.close()


def flight(index: int, priority: Priority, target: Target | None = None) -> Flight:
    return Flight(target or Target(REF, ()), REF.table[index], priority)


def indices(run: list[Flight]) -> list[int]:
    return [flight.chunk.index for flight in run]


def test_demand_leaves_before_trace_and_trace_before_background():
    agenda = Agenda()
    target = Target(REF, ())
    for index, priority in ((0, Priority.BACKGROUND), (2, Priority.TRACE), (4, Priority.DEMAND)):
        agenda.add(flight(index, priority, target))

    order = [indices(agenda.take(lambda _: True)) for _ in range(4)]

    assert order == [[4], [2], [0], []]


def test_neighbours_of_one_stripe_and_priority_leave_together_in_order():
    agenda = Agenda()
    big, _ = raw_blob([bytes([number]) * (1 << 20) for number in range(8)])
    target = Target(big, ())
    for index in (3, 2, 4, 1, 0, 5, 6):
        agenda.add(Flight(target, big.table[index], Priority.TRACE))

    runs = [indices(agenda.take(lambda _: True)) for _ in range(3)]

    assert runs == [[0, 1, 2, 3], [4, 5, 6], []]
    assert sum(big.table[index].source_length for index in runs[0]) <= MOST_RUN_BYTES


def test_what_is_read_takes_along_what_will_be_and_comes_first():
    agenda = Agenda()
    target = Target(REF, ())
    wanted = ((1, Priority.TRACE), (2, Priority.DEMAND), (3, Priority.TRACE), (4, Priority.TRACE))
    for index, priority in (*wanted, (5, Priority.BACKGROUND)):
        agenda.add(flight(index, priority, target))

    order = [indices(agenda.take(lambda _: True)) for _ in range(4)]

    assert order == [[2, 3, 4], [1], [5], []]


def test_what_is_wanted_more_urgently_moves_ahead_once():
    agenda = Agenda()
    slow, urgent = flight(0, Priority.TRACE), flight(5, Priority.BACKGROUND)
    agenda.add(slow)
    agenda.add(urgent)

    agenda.urge(urgent, Priority.DEMAND)

    assert [indices(agenda.take(lambda _: True)) for _ in range(3)] == [[5], [0], []]


def test_of_a_closed_blob_only_what_somebody_waits_for_is_fetched():
    agenda = Agenda()
    target = Target(REF, ())
    wanted = [flight(0, Priority.DEMAND, target), flight(2, Priority.TRACE, target)]
    for each in wanted:
        agenda.add(each)

    assert agenda.drop(REF.digest) == wanted[1:]
    assert agenda.drop("another") == []
    assert [indices(agenda.take(lambda _: True)) for _ in range(2)] == [[0], []]


def test_a_priority_that_is_not_allowed_waits():
    agenda = Agenda()
    agenda.add(flight(0, Priority.BACKGROUND))

    assert agenda.take(lambda priority: priority is Priority.DEMAND) == []
    assert len(agenda) == 1


def test_an_origin_that_is_slow_for_all_is_asked_twice_for_few(fetcher, monkeypatch):
    monkeypatch.setattr(Fetcher, "hedge_after_s", 0.0)
    begun, go_on = Event(), Event()
    source = ScriptedSource(DATA)
    source._script.append(source.held(begun, go_on))

    def give_and_let_go_on(run):
        yield from source.give(run)
        go_on.set()

    source._script.append(give_and_let_go_on)
    blob = Blob(REF, [source], fetcher)

    flights = blob.prefetch(range(len(PARTS)), Priority.DEMAND)
    assert begun.wait(60)
    assert blob.read(0, len(DATA)) == DATA

    assert [len(run) for run in source.requests] == [len(PARTS), 1]
    assert all(flight.landed.is_set() for flight in flights)
    blob.close()


def test_any_range_reads_as_the_blob_says(fetcher):
    blob = Blob(REF, [ScriptedSource(DATA)], fetcher)

    for offset, length in ((0, 1), (999, 2), (3000, 5000), (len(DATA) - 3, 100), (len(DATA), 5)):
        assert blob.read(offset, length) == DATA[offset : offset + length]
    assert blob.read(0, len(DATA)) == DATA

    blob.close()


def test_what_is_here_is_not_fetched_again(fetcher):
    source = ScriptedSource(DATA)
    blob = Blob(REF, [source], fetcher)

    blob.read(0, 500)
    blob.read(200, 700)

    assert source.requests == [[0]]


def test_readers_of_one_chunk_share_one_request(fetcher):
    begun, go_on = Event(), Event()
    source = ScriptedSource(DATA)
    source = ScriptedSource(DATA, [source.held(begun, go_on)])
    blob = Blob(REF, [source], fetcher)

    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(blob.read, 0, 1000) for _ in range(3)]
        assert begun.wait(60)
        go_on.set()
        assert [read.result(60) for read in reads] == [PARTS[0]] * 3

    assert source.requests == [[0]]


def test_a_flipped_bit_is_fetched_again_and_never_read(fetcher):
    source = ScriptedSource(DATA)
    source = ScriptedSource(DATA, [source.give_wrong, source.give_wrong])
    blob = Blob(REF, [source], fetcher)

    assert blob.read(0, 1000) == PARTS[0]

    assert source.requests == [[0], [0], [0]]
    assert fetcher.num_corrupt == 2


def test_the_next_source_gives_what_one_has_wrong_or_not_at_all(fetcher):
    origin = ScriptedSource(DATA)
    liar = ScriptedSource(DATA, [origin.give_wrong] * 9, name="liar")
    dead = ScriptedSource(DATA, [origin.fail] * 9, name="dead")
    blob = Blob(REF, [liar, dead, origin], fetcher)

    assert blob.read(0, len(DATA)) == DATA

    assert len(origin.requests) > 0
    assert fetcher.fetched_bytes["liar"] == fetcher.fetched_bytes["dead"] == 0


def test_of_a_broken_request_only_the_rest_is_asked_again(fetcher):
    source = ScriptedSource(DATA)
    source = ScriptedSource(DATA, [source.give_one_then_fail])
    blob = Blob(REF, [source], fetcher)

    assert blob.read(0, len(DATA)) == DATA

    assert source.requests[0] == list(range(12))
    assert source.requests[1] == list(range(1, 12))


def test_a_source_that_never_answers_right_is_an_error_for_this_read_only(fetcher):
    source = ScriptedSource(DATA)
    broken = ScriptedSource(DATA, [source.fail] * 100)
    blob = Blob(REF, [broken], fetcher, deadline_s=0.0)

    for _ in range(3):
        with pytest.raises(OSError) as failure:
            blob.read(0, 10)
        assert failure.value.errno == errno.EIO

    patient = Blob(REF, [source], fetcher)
    assert patient.read(0, 10) == DATA[:10]


def test_a_registry_that_comes_back_within_the_deadline_is_not_noticed(fetcher):
    source = ScriptedSource(DATA)
    source = ScriptedSource(DATA, [source.fail] * 2)
    blob = Blob(REF, [source], fetcher, deadline_s=60)

    assert blob.read(5000, 100) == DATA[5000:5100]


def test_a_request_that_hangs_is_overtaken_by_a_second_one(store):
    fetcher = Fetcher(store, num_workers=4)
    begun, go_on = Event(), Event()
    source = ScriptedSource(DATA)
    source = ScriptedSource(DATA, [source.held(begun, go_on)])
    blob = Blob(REF, [source], fetcher)

    assert blob.read(0, 1000) == PARTS[0]

    assert source.requests == [[0], [0]]
    go_on.set()
    fetcher.close()


def test_chunks_that_another_blob_brought_are_not_fetched(fetcher):
    first = Blob(REF, [ScriptedSource(DATA)], fetcher)
    first.read(0, len(DATA))
    other_ref, other_data = raw_blob([PARTS[3], b"new" * 500, PARTS[7]])
    source = ScriptedSource(other_data)

    other = Blob(other_ref, [source], fetcher)

    assert other.read(0, len(other_data)) == other_data
    assert {index for request in source.requests for index in request} == {1}


def test_a_full_store_is_read_past(tmp_path):
    store = ChunkStore(tmp_path / "small", capacity_bytes=2500, boot_id="boot")
    fetcher = Fetcher(store)
    blob = Blob(REF, [ScriptedSource(DATA)], fetcher)

    assert blob.read(0, len(DATA)) == DATA
    assert blob.read(0, len(DATA)) == DATA

    assert store.used_bytes <= 2500
    fetcher.close()
    store.close()


def test_a_reader_that_goes_on_is_fetched_ahead_of(fetcher):
    source = ScriptedSource(DATA)
    blob = Blob(REF, [source], fetcher)
    chunks = REF.table

    blob.read(chunks[0].offset, 10)
    blob.read(chunks[1].offset, 10)
    for ahead in blob.prefetch([2, 3], Priority.TRACE):
        assert ahead.landed.wait(60)
    blob.read(chunks[6].offset, 10)

    asked = sorted(index for request in source.requests for index in request)
    assert asked == [0, 1, 2, 3, 6]


def test_a_read_anywhere_takes_along_what_costs_no_round_trip(fetcher):
    source = ScriptedSource(DATA)
    blob = Blob(REF, [source], fetcher, least_ahead_bytes=2 * REF.table[5].length + 1)

    blob.read(REF.table[4].offset, 10)
    for ahead in blob.prefetch([5, 6], Priority.TRACE):
        assert ahead.landed.wait(60)
    blob.read(REF.table[11].offset, 10)

    assert source.requests == [[4, 5, 6], [11]]


def test_background_waits_for_demand_and_all_of_it_arrives(fetcher):
    source = ScriptedSource(DATA)
    blob = Blob(REF, [source], fetcher)

    flights = blob.prefetch(blob.missing, Priority.BACKGROUND)

    assert all(flight.landed.wait(60) for flight in flights)
    assert blob.missing == []


def test_what_waits_when_the_fetcher_closes_ends_with_an_error(store):
    fetcher = Fetcher(store, num_workers=1)
    begun, go_on = Event(), Event()
    source = ScriptedSource(DATA)
    source = ScriptedSource(DATA, [source.held(begun, go_on)])
    blob = Blob(REF, [source], fetcher)
    (first,) = blob.prefetch([0], Priority.DEMAND)
    assert begun.wait(60)
    (waiting,) = blob.prefetch([5], Priority.DEMAND)

    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(fetcher.close)
        assert waiting.landed.wait(60)
        go_on.set()
        closing.result(60)

    assert waiting.error is not None
    assert first.error is None
