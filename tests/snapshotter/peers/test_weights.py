"""Weights by way of the nodes' chunk stores: each byte from the origin once, and proven."""

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import Invalid
from infra.json_socket import JsonServer, Verb
from infra.sources.http_ranges import HttpRanges, Location
from infra.sources.node_chunks import share_through
from infra.sources.patience import PATIENT
from infra.sources.piece_digests import PIECE_BYTES
from infra.sources.port import OnBytes, Remote
from infra.sources.stream import open_source
from snapshotter.blob.weights.open_weights import OpenWeights
from snapshotter.blob.weights.proven import (
    MemoryProvenWeights,
    ProvenWeights,
    RedisProvenWeights,
)
from snapshotter.blob.weights.table import weights_ref
from snapshotter.index.chunk_table import STRIPE_BYTES
from tests.snapshotter.peers.conftest import Node
from tests.support.processes import until
from tests.support.range_server import RangeServer, range_server

NAME = "model.safetensors"
CONTENT = random.Random(5).randbytes((9 << 20) + 77)  # three stripes
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
STEADFAST = replace(PATIENT, stall_s=600, hedge_s=600)  # asks for nothing twice on a slow machine


class Origin:
    """One model whose weights a range server gives."""

    def __init__(self, server: RangeServer) -> None:
        server.files[NAME] = CONTENT
        self.server = server

    @property
    def given_bytes(self) -> int:
        return sum(stop - start for start, stop in self.server.ranges(NAME))

    def remote(self, resolved: ResolvedSource) -> Remote:
        def bring(file: SourceFile, path: Path, on_bytes: OnBytes) -> None:
            raise AssertionError("there are no small files")

        def locate(file: SourceFile, *, again: bool) -> Location:
            return Location(f"{self.server.url}/{file.path}")

        def open_reader() -> HttpRanges:
            return HttpRanges(locate, STEADFAST)

        return Remote(bring, open_reader, STEADFAST, came_from=lambda: "s3")


def model(digest: str = DIGEST) -> ResolvedSource:
    weights = SourceFile(path=NAME, size=len(CONTENT), digest=digest)
    return ResolvedSource(uri="s3://b/m", digest="sha256:" + "0" * 64, files=(weights,))


class Machine:
    """A node with its store's socket, and workers that start on it."""

    def __init__(self, node: Node, origin: Origin, folder: Path, proven: ProvenWeights) -> None:
        self.node = node
        self.socket = folder / f"{node.name}.sock"
        self._origin = origin
        self._folder = folder / f"{node.name}-caches"
        self._weights = OpenWeights(
            origin.remote, node.fetcher, node.peering, proven, deadline_s=60
        )
        JsonServer(self.socket, self._weights.verbs).start()

    def start(
        self, cache: str = "first", source: ResolvedSource | None = None
    ) -> tuple[bytes, str]:
        """The weights as a worker gets them, and where it says that they came from."""
        source = source or model()
        remote = share_through(self.socket)(source, self._origin.remote(source))
        opened = open_source(
            source, self._folder / cache, remote, lambda size: None, lambda fraction: None
        )
        return (opened.folder / NAME).read_bytes(), opened.origin

    def ask(self, verb: str, source: ResolvedSource | None = None, **facts: str) -> Any:
        with self._weights.verbs() as verbs:
            return verbs[verb]({"source": (source or model()).model_dump(mode="json"), **facts})

    def bring(self) -> None:
        """All of it is in the store, for somebody who has not proven it yet."""
        with self._weights.verbs() as verbs:
            verbs["open"]({"source": model().model_dump(mode="json"), "file": NAME})
            verbs["bring"]({"file": NAME, "offset": 0, "length": len(CONTENT)})

    def spoil(self, offset: int) -> None:
        """A byte of what the store has becomes another one, which nobody notices."""
        path = self.node.store.data_path(weights_ref(model(), model().files[0]).digest)
        descriptor = os.open(path, os.O_RDWR)
        byte = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([byte[0] ^ 1]), offset)
        os.close(descriptor)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with range_server() as server:
        yield Origin(server)


@pytest.fixture
def proven() -> ProvenWeights:
    """What all nodes know."""
    return MemoryProvenWeights()


@pytest.fixture
def make_machine(
    make_node: Callable[..., Node], origin: Origin, tmp_path: Path, proven: ProvenWeights
) -> Callable[[str], Machine]:
    (tmp_path / "sockets").mkdir()
    return lambda name: Machine(make_node(name), origin, tmp_path / "sockets", proven)


def test_a_second_worker_of_a_node_reads_what_the_first_one_brought(
    make_machine: Callable[[str], Machine], origin: Origin
) -> None:
    machine = make_machine("a")

    assert machine.start("first") == (CONTENT, "s3")
    assert machine.start("second") == (CONTENT, "cache")
    assert origin.given_bytes == len(CONTENT)


def test_a_second_node_reads_what_the_first_one_has(
    make_machine: Callable[[str], Machine], origin: Origin
) -> None:
    first, second = make_machine("a"), make_machine("b")
    first.start()

    assert second.start() == (CONTENT, "peer")
    assert origin.given_bytes == len(CONTENT)


def test_nodes_that_start_together_do_not_each_read_the_origin(
    make_machine: Callable[[str], Machine], origin: Origin
) -> None:
    machines = [make_machine(name) for name in "abcd"]

    with ThreadPoolExecutor(len(machines)) as at_once:
        started = list(at_once.map(Machine.start, machines))

    assert [content for content, _ in started] == [CONTENT] * len(machines)
    assert origin.given_bytes < 3 * len(CONTENT)  # alone they read it four times


def test_what_a_neighbour_spoiled_of_a_file_that_nobody_has_proven_comes_again_from_the_origin(
    make_machine: Callable[[str], Machine],
) -> None:
    first, second = make_machine("a"), make_machine("b")
    first.bring()
    first.spoil(5 << 20)

    content, origin = second.start()

    assert content == CONTENT
    assert origin == "peer+s3"


def test_what_nobody_has_proven_is_given_by_who_read_it_from_the_origin_and_not_passed_on(
    make_machine: Callable[[str], Machine], origin: Origin
) -> None:
    first, second, third = (make_machine(name) for name in "abc")
    first.bring()
    second.bring()
    assert origin.given_bytes == len(CONTENT)

    first.node.peering.close()
    third.bring()

    assert origin.given_bytes == 2 * len(CONTENT)
    assert third.node.fetcher.fetched_bytes["peer"] == 0


def test_what_was_proven_is_passed_on_by_whoever_has_it(
    make_machine: Callable[[str], Machine], origin: Origin
) -> None:
    first, second, third = (make_machine(name) for name in "abc")
    first.start()
    until_proven(first)
    second.bring()
    first.node.peering.close()

    third.bring()

    assert origin.given_bytes == len(CONTENT)


def test_once_one_node_has_proven_a_file_no_other_takes_a_wrong_piece_of_it(
    make_machine: Callable[[str], Machine], origin: Origin
) -> None:
    first, second = make_machine("a"), make_machine("b")
    first.start()
    until_proven(first)
    first.spoil(5 << 20)
    given = origin.given_bytes

    assert second.start()[0] == CONTENT

    more = origin.given_bytes - given  # the spoiled one and its neighbours, from where it is right
    assert PIECE_BYTES <= more <= STRIPE_BYTES
    assert second.node.fetcher.num_corrupt == 0


def test_a_directory_that_is_away_costs_the_digests_and_nothing_else(
    make_node: Callable[..., Node], origin: Origin, tmp_path: Path
) -> None:
    machine = Machine(make_node("a"), origin, tmp_path, redis_of("redis://127.0.0.1:1"))

    assert machine.start("first") == (CONTENT, "s3")
    assert machine.start("second") == (CONTENT, "cache")


@pytest.mark.parametrize("digests", ["!", "AAAA"])
def test_digests_that_fit_no_file_are_refused(
    make_machine: Callable[[str], Machine], digests: str
) -> None:
    machine = make_machine("a")

    with pytest.raises(Invalid):
        machine.ask("prove", file=NAME, digests=digests)

    assert machine.ask("digests", file=NAME) == ""


def test_a_part_whose_digest_is_known_is_read_again_at_once(
    make_machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    machine = make_machine("a")
    machine.start()
    kept = tmp_path / "sockets" / "a-caches" / "first"
    (kept / ("0" * 64) / NAME).unlink()  # the digests of its parts stay
    machine.spoil(5 << 20)

    assert machine.start() == (CONTENT, "cache+s3")


def test_files_that_nobody_can_prove_are_read_from_their_source(
    make_machine: Callable[[str], Machine], origin: Origin
) -> None:
    machine = make_machine("a")
    unproven = model("etag:1234-2")

    assert machine.start("first", unproven) == (CONTENT, "s3")
    assert machine.start("second", unproven) == (CONTENT, "s3")
    assert origin.given_bytes == 2 * len(CONTENT)
    assert machine.ask("digests", unproven, file=NAME) == ""


def redis_of(url: str) -> RedisProvenWeights:
    return RedisProvenWeights(url, token="a token of nodes")


def until_proven(machine: Machine) -> None:
    """The worker says it when the file is in its cache, beside what follows."""
    until(lambda: machine.ask("digests", file=NAME) != "", seconds=30, what="the file is proven")


def refuse(question: object) -> None:
    raise RuntimeError("no")


@pytest.mark.parametrize(
    "verbs", [None, {}, {"open": lambda question: "/nothing"}, {"open": refuse}]
)
def test_without_a_store_that_works_weights_come_as_they_always_did(
    verbs: dict[str, Verb] | None, origin: Origin, tmp_path: Path
) -> None:
    path = tmp_path / "store.sock"
    if verbs is not None:
        JsonServer(path, lambda: nullcontext(verbs)).start()
    remote = share_through(path)(model(), origin.remote(model()))

    opened = open_source(
        model(), tmp_path / "cache", remote, lambda size: None, lambda fraction: None
    )

    assert (opened.folder / NAME).read_bytes() == CONTENT
    assert opened.origin == "s3"
    assert origin.given_bytes == len(CONTENT)
