"""Weights on their way from a source with every fault into memory, and then into the cache."""

import gc
import hashlib
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from infra.backoff import Backoff
from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import SourceChanged, SourceUnavailable, WeightsUnavailable
from infra.hashing.pieces import DIGEST_BYTES
from infra.sources.http_ranges import HttpRanges, Location
from infra.sources.landing import Landing
from infra.sources.partial import SUFFIX
from infra.sources.patience import Patience
from infra.sources.port import OnBytes, OpenedSource, Remote, WeightStream
from infra.sources.staging import DIGESTS_SUFFIX, fetch
from infra.sources.stream import open_source
from tests.support import range_server as faults
from tests.support.processes import until
from tests.support.range_server import Asked, Fault, RangeServer, range_server

CHUNK = 1000
CONTENT = bytes(index * index % 251 for index in range(10 * CHUNK + 7))
NUM_CHUNKS = 11
DIGESTS = b"".join(
    hashlib.sha256(CONTENT[at : at + CHUNK]).digest() for at in range(0, len(CONTENT), CHUNK)
)
NAME = "model.safetensors"
QUICK = Patience(
    connect_s=5,
    stall_s=0.2,
    hedge_s=0.05,
    attempts=4,
    failures=8,
    backoff=Backoff(first_s=0.001, most_s=0.01),
)

PATIENT = replace(QUICK, stall_s=600, hedge_s=600)  # asks for nothing twice on a slow machine


@dataclass
class Source:
    """One remote model whose weights come from a range server."""

    server: RangeServer
    cache: Path
    patience: Patience = QUICK
    digest: str | None = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    etag: str | None = None
    brought: int = 0
    located: int = 0
    known: bytes = b""  # what somebody else says of the pieces
    proven: list[bytes] = field(default_factory=list)

    @property
    def resolved(self) -> ResolvedSource:
        small = SourceFile(path="config.json", size=2)
        weights = SourceFile(path=NAME, size=len(CONTENT), digest=self.digest, etag=self.etag)
        return ResolvedSource(uri="s3://b/m", digest="sha256:" + "0" * 64, files=(small, weights))

    @property
    def folder(self) -> Path:
        return self.cache / ("0" * 64)

    @property
    def partial(self) -> Path:
        return self.folder.with_suffix(".partial") / NAME

    @property
    def remote(self) -> Remote:
        def bring(file: SourceFile, path: Path, on_bytes: OnBytes) -> None:
            self.brought += 1
            path.write_bytes(b"{}")

        def open_reader() -> HttpRanges:
            return HttpRanges(self.locate, self.patience)

        return Remote(
            bring,
            open_reader,
            self.patience,
            came_from=lambda: "s3",
            known=lambda file: self.known,
            on_proof=lambda file, digests: self.proven.append(digests),
        )

    def hold_from(self, start: int) -> threading.Event:
        """Ranges from there on are answered once the event is set."""
        gate = threading.Event()

        def held(asked: Asked) -> None:
            if asked.start >= start:
                gate.wait()
            asked.answer()

        self.server.always = held
        return gate

    def locate(self, file: SourceFile, *, again: bool) -> Location:
        self.located += 1
        return Location(f"{self.server.url}/{file.path}", etag=self.etag)

    def open(
        self,
        land: Callable[[int], Landing | None] = Landing,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> OpenedSource:
        return open_source(self.resolved, self.cache, self.remote, land, on_progress)

    def fetch(self) -> Path:
        return fetch(self.resolved, self.cache, self.remote, lambda fraction: None)

    def until_cached(self) -> None:
        until((self.folder / NAME).exists, seconds=30, what="in the cache")
        until(
            lambda: not self.folder.with_suffix(".partial").exists(), seconds=30, what="tidied up"
        )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.sources.chunks.FIRST_BYTES", CHUNK)
    monkeypatch.setattr("infra.sources.chunks.CHUNK_BYTES", CHUNK)
    monkeypatch.setattr("infra.sources.piece_digests.PIECE_BYTES", CHUNK)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with range_server() as server:
        server.files[NAME] = CONTENT
        yield Source(server, tmp_path / "cache")


def stream_of(opened: OpenedSource) -> WeightStream:
    assert opened.stream is not None
    return opened.stream


def test_weights_arrive_in_memory_and_then_in_the_cache(source: Source) -> None:
    heard: list[float] = []
    opened = source.open(on_progress=heard.append)
    stream = stream_of(opened)
    assert (opened.origin, stream.names) == ("s3", {NAME})
    assert (opened.folder / "config.json").read_bytes() == b"{}"

    stream.finish()

    assert bytes(stream.memory(NAME)) == CONTENT
    assert heard == sorted(heard) and heard[-1] == 1.0 and len(heard) == NUM_CHUNKS
    source.until_cached()
    assert (source.folder / NAME).read_bytes() == CONTENT
    again = source.open()
    assert (again.origin, again.stream, again.folder) == ("cache", None, source.folder)
    assert source.brought == 1


def test_memory_becomes_the_file_in_the_cache(source: Source) -> None:
    stream = stream_of(source.open())
    stream.finish()
    source.until_cached()

    maps = Path("/proc/self/maps").read_text()
    assert any(str(source.folder / NAME) in line for line in maps.splitlines())
    assert bytes(stream.memory(NAME)) == CONTENT


def test_what_is_there_can_be_used_while_the_rest_is_on_its_way(source: Source) -> None:
    gate = source.hold_from(6 * CHUNK)
    source.patience = Patience(stall_s=600, hedge_s=600)
    stream = stream_of(source.open())

    stream.wait(NAME, 8, 5 * CHUNK)

    assert bytes(stream.memory(NAME)[: 5 * CHUNK]) == CONTENT[: 5 * CHUNK]
    gate.set()
    stream.finish()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.status(500), id="500"),
        pytest.param(faults.status(503, Retry_After="0"), id="503"),
        pytest.param(faults.status(429), id="429"),
        pytest.param(faults.truncated, id="truncated"),
        pytest.param(faults.stalled, id="stalled"),
        pytest.param(faults.silent, id="silent"),
        pytest.param(faults.reset, id="reset"),
        pytest.param(faults.wrong_range, id="wrong range"),
        pytest.param(faults.whole_file, id="whole file"),
        pytest.param(faults.garbage, id="no HTTP"),
        pytest.param(faults.status(403), id="expired credentials"),
        pytest.param(faults.status(401), id="expired token"),
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_a_fault_now_and_then_is_put_up_with(source: Source, fault: Fault, place: int) -> None:
    source.server.faults = [*[Asked.answer] * place, fault, *[Asked.answer] * 2, fault]

    stream = stream_of(source.open())
    stream.finish()

    assert bytes(stream.memory(NAME)) == CONTENT
    source.until_cached()


def test_a_line_that_broke_goes_on_where_it_was(source: Source) -> None:
    source.patience = Patience(hedge_s=60, backoff=Backoff(first_s=0.001, most_s=0.01))
    source.server.faults = [faults.truncated]
    stream_of(source.open()).finish()
    assert any(stop - start == CHUNK // 2 for start, stop in source.server.ranges(NAME))


def test_a_slow_chunk_is_asked_for_twice_and_the_first_answer_is_taken(source: Source) -> None:
    source.patience = Patience(stall_s=600, hedge_s=0.02)
    slow: list[Asked] = []

    def once(asked: Asked) -> None:
        if asked.start != 3 * CHUNK or slow:
            asked.answer()
            return
        slow.append(asked)
        faults.stalled(asked)  # for ever: only a hedge can help

    source.server.always = once

    stream = stream_of(source.open())
    stream.finish()

    assert bytes(stream.memory(NAME)) == CONTENT
    assert len(slow) == 1
    assert source.server.ranges(NAME).count((3 * CHUNK, 4 * CHUNK)) >= 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.status(503), "HTTP 503"),
        (faults.status(403), "denied"),
        (faults.truncated, "the line broke"),
        (faults.reset, NAME),
        (faults.wrong_range, "another range"),
        (faults.whole_file, "serves no ranges"),
    ],
)
def test_a_source_that_only_fails_is_unavailable_in_the_end(
    source: Source, fault: Fault, words: str
) -> None:
    source.server.always = fault
    opened = source.open()
    stream = stream_of(opened)

    with pytest.raises(WeightsUnavailable, match=words) as caught:
        stream.finish()
    with pytest.raises(WeightsUnavailable, match=words):
        stream.wait(NAME, 0, 8)
    stream.close()

    assert caught.value.slug == "weights-unavailable"
    assert len(source.server.asked) < 60
    assert not (source.folder / NAME).exists()


def test_a_source_that_is_not_there_is_unavailable(source: Source) -> None:
    source.server.url = "http://127.0.0.1:9"
    stream = stream_of(source.open())
    with pytest.raises(WeightsUnavailable, match="refused"):
        stream.finish()
    stream.close()


def test_damaged_bytes_are_computed_with_and_never_served(source: Source) -> None:
    source.server.faults = [faults.flipped]
    stream = stream_of(source.open())
    stream.wait(NAME, 0, len(CONTENT))
    with pytest.raises(WeightsUnavailable, match="arrived damaged"):
        stream.finish()
    stream.close()
    assert not (source.folder / NAME).exists()

    again = stream_of(source.open())
    again.finish()

    assert bytes(again.memory(NAME)) == CONTENT
    source.until_cached()


def test_chunks_that_arrived_once_are_proven_one_by_one_the_next_time(source: Source) -> None:
    source.patience = PATIENT
    source.fetch()
    (digests,) = source.cache.glob(f"*{DIGESTS_SUFFIX}/{NAME}")
    assert digests.stat().st_size == NUM_CHUNKS * DIGEST_BYTES
    (source.folder / NAME).unlink()
    source.server.asked.clear()
    source.server.faults = [faults.flipped]

    stream = stream_of(source.open())
    stream.finish()

    assert bytes(stream.memory(NAME)) == CONTENT
    assert len(source.server.ranges(NAME)) == NUM_CHUNKS + 1


def test_pieces_that_somebody_else_has_proven_are_proven_one_by_one_the_first_time(
    source: Source,
) -> None:
    source.known = DIGESTS
    source.server.faults = [faults.flipped]

    stream = stream_of(source.open())
    stream.finish()

    assert bytes(stream.memory(NAME)) == CONTENT
    source.until_cached()
    assert source.proven == [DIGESTS]


def test_digests_that_the_source_contradicts_are_made_anew(source: Source) -> None:
    source.known = DIGESTS[:-DIGEST_BYTES] + bytes(DIGEST_BYTES)

    stream = stream_of(source.open())
    stream.finish()

    assert bytes(stream.memory(NAME)) == CONTENT
    source.until_cached()
    assert source.proven == [DIGESTS]
    source.proven.clear()
    (source.folder / NAME).unlink()
    source.fetch()
    assert source.proven == [DIGESTS]


def test_bytes_that_nothing_but_the_digests_of_pieces_can_prove_have_to_be_those(
    source: Source,
) -> None:
    source.digest = "etag:1234-2"
    source.known = bytes(len(DIGESTS))

    with pytest.raises(WeightsUnavailable, match="arrived damaged"):
        source.fetch()

    assert source.proven == []


def test_an_object_that_changes_meanwhile_is_refused(source: Source) -> None:
    source.etag = source.server.etags[NAME] = "one"

    def changed(asked: Asked) -> None:
        source.server.etags[NAME] = "two"
        source.server.files[NAME] = CONTENT[::-1]
        asked.head(412, 0)

    source.server.faults = [*[Asked.answer] * 3, changed]
    stream = stream_of(source.open())
    with pytest.raises(SourceChanged):
        stream.finish()
    stream.close()
    assert not (source.folder / NAME).exists()


def test_an_etag_that_changes_with_equal_content_is_planned_anew(source: Source) -> None:
    source.etag = source.server.etags[NAME] = "one"
    source.server.faults = [Asked.answer, Asked.answer, lambda asked: renamed(asked)]

    def renamed(asked: Asked) -> None:
        source.etag = source.server.etags[NAME] = "two"  # as a look at the store finds
        asked.head(412, 0)

    stream = stream_of(source.open())
    stream.finish()
    assert bytes(stream.memory(NAME)) == CONTENT


def test_a_server_that_ignores_the_etag_is_found_out(source: Source) -> None:
    source.etag = "pinned"
    source.server.etags[NAME] = "other"
    source.server.always = Asked.answer
    stream = stream_of(source.open())
    with pytest.raises(SourceChanged):
        stream.finish()
    stream.close()


def test_credentials_stay_with_the_origin_that_they_are_for(source: Source) -> None:
    with range_server() as elsewhere:
        elsewhere.files[NAME] = CONTENT
        source.server.always = faults.status(302, Location=f"{elsewhere.url}/{NAME}?signed")
        place = Location(f"{source.server.url}/{NAME}", {"Authorization": "Bearer secret"})
        reader = HttpRanges(lambda file, again: place, QUICK)
        memory = memoryview(bytearray(10))
        assert reader.read_into(source.resolved.files[1], 5, memory) == 10
        assert reader.read_into(source.resolved.files[1], 5, memory) == 10
        reader.close()
    assert bytes(memory) == CONTENT[5:15]
    assert [asked.headers.get("Authorization") for asked in source.server.asked] == [
        "Bearer secret"
    ]
    assert len(elsewhere.asked) == 2
    assert not any("Authorization" in asked.headers for asked in elsewhere.asked)


def test_a_source_that_shows_no_certificate_of_anybody_is_not_read(source: Source) -> None:
    secure = source.server.url.replace("http://", "https://")  # plain HTTP is spoken there
    reader = HttpRanges(lambda file, again: Location(f"{secure}/{NAME}"), QUICK)
    with pytest.raises(SourceUnavailable, match="SSL"):
        reader.read_into(source.resolved.files[1], 0, memoryview(bytearray(10)))
    reader.close()
    assert not source.server.asked


def test_a_circle_of_redirects_ends(source: Source) -> None:
    source.server.always = faults.status(302, Location=f"/{NAME}")
    reader = HttpRanges(source.locate, QUICK)
    with pytest.raises(SourceUnavailable, match="circle"):
        reader.read_into(source.resolved.files[1], 0, memoryview(bytearray(10)))
    reader.close()


def downloads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith(("download", "weights-keeper"))]


@pytest.mark.parametrize("fault", [faults.stalled, faults.silent, faults.status(503)])
def test_a_stream_ends_wherever_it_is_and_lets_everything_go(source: Source, fault: Fault) -> None:
    source.patience = Patience(stall_s=600, attempts=1000, failures=1000)
    source.server.faults = [Asked.answer] * 3
    source.server.always = fault
    landings: list[weakref.ref[Landing]] = []

    def land(size: int) -> Landing:
        landing = Landing(size)
        landings.append(weakref.ref(landing))
        return landing

    stream = stream_of(source.open(land))
    until(lambda: len(source.server.asked) >= 4, seconds=30, what="in the middle of it")
    ended: list[Exception] = []

    def finish(stream: WeightStream) -> None:
        try:
            stream.finish()
        except WeightsUnavailable as error:
            ended.append(error.with_traceback(None))

    waiting = threading.Thread(target=finish, args=(stream,))
    waiting.start()

    stream.close()
    waiting.join()

    assert len(ended) == 1
    until(lambda: not downloads(), seconds=30, what="its threads have ended")
    del stream, waiting
    gc.collect()
    until(lambda: landings[0]() is None, seconds=30, what="the memory is gone")
    assert not (source.folder / NAME).exists()
    source.server.always = None
    source.fetch()  # nobody holds the lock
    assert (source.folder / NAME).read_bytes() == CONTENT


def test_what_had_arrived_is_not_downloaded_again(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.sources.stream.HASTE_S", 0)
    source.patience = PATIENT
    source.server.faults = [Asked.answer] * 5
    source.server.always = faults.status(503)
    stream = stream_of(source.open())
    with pytest.raises(WeightsUnavailable):
        stream.finish()
    until(lambda: kept_chunks(source) >= 1, seconds=30, what="some chunks are on disk")
    stream.close()
    kept = kept_chunks(source)
    source.server.always = None
    source.server.asked.clear()

    again = stream_of(source.open())
    again.finish()

    assert bytes(again.memory(NAME)) == CONTENT
    # a set: what the first stream had asked for last may be heard of only now
    assert len(set(source.server.ranges(NAME))) == NUM_CHUNKS - kept


def test_chunks_that_are_torn_on_disk_are_downloaded_again(source: Source) -> None:
    source.server.faults = [Asked.answer] * NUM_CHUNKS
    source.fetch()
    source.folder.with_suffix(".partial").mkdir()
    (source.folder / NAME).rename(source.partial)
    (digests,) = source.cache.glob(f"*{DIGESTS_SUFFIX}/{NAME}")
    digests.rename(source.partial.with_name(NAME + SUFFIX))
    with source.partial.open("r+b") as file:  # as if the machine had lost its power
        file.seek(4 * CHUNK)
        file.write(bytes(CHUNK))
    source.server.asked.clear()

    source.fetch()

    assert source.server.ranges(NAME) == [(4 * CHUNK, 5 * CHUNK)]
    assert (source.folder / NAME).read_bytes() == CONTENT


def test_many_that_want_it_at_once_download_it_once(source: Source) -> None:
    contents: list[bytes] = []

    def want() -> None:
        opened = source.open()
        if opened.stream is not None:
            opened.stream.finish()
            contents.append(bytes(opened.stream.memory(NAME)))
        else:
            contents.append((opened.folder / NAME).read_bytes())

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert contents == [CONTENT] * 4
    assert sorted(set(source.server.ranges(NAME))) == sorted(source.server.ranges(NAME))


def test_where_there_is_no_room_in_memory_weights_go_into_the_cache(source: Source) -> None:
    opened = source.open(lambda size: None)
    assert opened.stream is None
    assert (opened.folder / NAME).read_bytes() == CONTENT


def test_a_full_disk_costs_the_cache_and_nothing_else(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infra.sources.partial.PartialFile.save", full)
    stream = stream_of(source.open())
    stream.finish()
    assert bytes(stream.memory(NAME)) == CONTENT
    assert not (source.folder / NAME).exists()


def kept_chunks(source: Source) -> int:
    journal = source.partial.with_name(NAME + SUFFIX).read_bytes()
    digests = [journal[at : at + DIGEST_BYTES] for at in range(0, len(journal), DIGEST_BYTES)]
    return sum(digest != bytes(DIGEST_BYTES) for digest in digests)
