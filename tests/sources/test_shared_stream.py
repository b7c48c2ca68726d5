"""Weights on their way into files that several processes map."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import WeightsDamaged
from infra.sources.port import OpenedSource, WeightStream
from infra.sources.shared_files import SharedFiles
from infra.sources.shared_stream import FollowedStream
from infra.sources.stream import open_source
from tests.sources.test_stream import CHUNK, CONTENT, NAME, PATIENT, Source
from tests.sources.test_stream import small_chunks as small_chunks
from tests.support import range_server as faults
from tests.support.processes import until
from tests.support.range_server import Asked, range_server


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with range_server() as server:
        server.files[NAME] = CONTENT
        yield Source(server, tmp_path / "cache", PATIENT)


def opened_by(source: Source) -> OpenedSource:
    return open_source(
        source.resolved,
        source.cache,
        source.remote,
        lambda size: None,
        lambda fraction: None,
        is_shared=True,
    )


def shared_by(source: Source) -> tuple[WeightStream, SharedFiles]:
    opened = opened_by(source)
    assert opened.stream is not None
    assert opened.stream.shared is not None
    return opened.stream, SharedFiles.model_validate_json(opened.stream.shared.model_dump_json())


def test_who_follows_has_what_is_there_while_the_rest_is_on_its_way(source: Source) -> None:
    gate = source.hold_from(6 * CHUNK)
    stream, shared = shared_by(source)
    followed = FollowedStream(shared)

    followed.wait(NAME, 8, 5 * CHUNK)

    assert bytes(followed.memory(NAME)[: 5 * CHUNK]) == CONTENT[: 5 * CHUNK]
    waiting = threading.Thread(target=followed.wait, args=(NAME, 0, len(CONTENT)))
    waiting.start()
    assert waiting.is_alive()
    gate.set()
    waiting.join()
    stream.finish()
    assert bytes(followed.memory(NAME)) == CONTENT


def test_every_byte_comes_once_and_stays_where_it_came(source: Source) -> None:
    stream, shared = shared_by(source)
    followers = [FollowedStream(shared) for _ in range(3)]
    for followed in followers:
        followed.wait(NAME, 0, len(CONTENT))
    stream.finish()
    source.until_cached()

    assert sum(stop - start for start, stop in source.server.ranges(NAME)) == len(CONTENT)
    with (source.folder / NAME).open("r+b") as file:  # one copy for all, in the page cache
        file.write(b"?")
    assert [bytes(it.memory(NAME)[:1]) for it in (stream, *followers)] == [b"?"] * 4


def test_what_an_interrupted_download_left_is_believed_when_it_was_looked_at(
    source: Source,
) -> None:
    source.server.faults = [Asked.answer] * 6
    source.server.always = faults.reset
    source.patience = replace(PATIENT, failures=0)
    stream, _ = shared_by(source)
    until(lambda: len(source.server.ranges(NAME)) > 6, seconds=30, what="six chunks came")
    stream.close()
    with source.partial.open("r+b") as file:  # as if the machine had lost its power
        file.seek(CHUNK)
        file.write(bytes(CHUNK))
    source.server.always = None

    again, shared = shared_by(source)
    followed = FollowedStream(shared)
    followed.wait(NAME, 0, len(CONTENT))
    again.finish()

    assert bytes(followed.memory(NAME)) == CONTENT


def test_damaged_bytes_are_brought_again_the_next_time(source: Source) -> None:
    source.server.faults = [faults.flipped]
    stream, _ = shared_by(source)
    with pytest.raises(WeightsDamaged):
        stream.finish()
    stream.close()
    assert not (source.folder / NAME).exists()

    again, _ = shared_by(source)
    again.finish()

    assert bytes(again.memory(NAME)) == CONTENT
    source.until_cached()


def test_what_is_in_the_cache_is_not_streamed(source: Source) -> None:
    source.fetch()

    opened = opened_by(source)

    assert opened.stream is None
    assert opened.origin == "cache"
