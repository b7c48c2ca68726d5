"""Nodes that share chunks: what each origin gives, and that every byte is right."""

import http.client
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Event, Semaphore, Thread

import pytest

from infra.errors import StoreUnavailable
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.flight import Priority
from snapshotter.blob.peers.directory import Announcement, MemoryDirectory
from snapshotter.blob.peers.peer import Peer
from snapshotter.blob.peers.placement import home_of
from snapshotter.blob.peers.upload_cap import Rate
from snapshotter.blob.peers.wire import bearer_of
from tests.snapshotter.makers import raw_blob
from tests.snapshotter.peers.conftest import DATA, NUM_CHUNKS, REF, TOKEN
from tests.snapshotter.scripted import ScriptedSource
from tests.support.processes import until


def given(*origins: ScriptedSource) -> int:
    """Chunks that origins gave, all together."""
    return sum(len(run) for origin in origins for run in origin.requests)


def read_all(blob, part: int = 1500) -> bytes:
    return b"".join(blob.read(offset, part) for offset in range(0, blob.size, part))


def many_stripes(num: int):
    """A blob whose chunks are as far apart in their source as stripes are."""
    parts = [bytes([number + 1]) * (100 + number) for number in range(num)]
    ref, data = raw_blob(parts)
    chunks = [
        type(it)(it.index, it.offset, it.length, it.digest, it.index << 22, it.length)
        for it in ref.table
    ]
    return type(ref)(ref.digest, type(ref.table)(chunks)), data


def test_nodes_that_start_together_ask_the_origin_once_for_each_chunk(make_node):
    ref, data = many_stripes(NUM_CHUNKS)
    nodes = [make_node(name) for name in "abcd"]
    origins = [ScriptedSource(data, name="origin") for _ in nodes]
    blobs = [node.open(ref, origin) for node, origin in zip(nodes, origins, strict=True)]
    for node in nodes:
        node.peering._neighbourhood.refresh(within_s=60)

    with ThreadPoolExecutor(4) as threads:
        texts = list(threads.map(read_all, blobs))

    assert texts == [data] * 4
    assert given(*origins) == NUM_CHUNKS
    assert all(node.fetcher.fetched_bytes["peer"] > 0 for node in nodes)
    for origin, node in zip(origins, nodes, strict=True):
        for (index,) in origin.requests:
            assert home_of(ref.digest, index, "abcd") == node.name


def test_nodes_that_open_a_blob_one_after_the_other_soon_know_of_one_another(make_node):
    """Long before the next beat of a node that opened nothing."""
    first, second = make_node("a"), make_node("b")
    first.open(REF, ScriptedSource(DATA))
    second.open(REF, ScriptedSource(DATA))

    until(
        lambda: [it.node_id for it in first.peering._neighbourhood.peers_of(REF.digest)] == ["b"],
        seconds=4,
        what="the first one has heard of the second",
    )


class Blind(MemoryDirectory):
    """Tells nobody of anybody, as if all had come in the same moment."""

    def exchange(self, announcement):
        return dict.fromkeys(announcement.blobs, ())


@pytest.fixture
def blind() -> Blind:
    return Blind(lambda: 0.0)


def waits(node, monkeypatch, *, num_impatient: int = 0) -> Semaphore:
    """Released whenever the node is about to wait for its origin, for somebody else; the first
    times it does not wait at all.
    """
    begun, num_asked = Semaphore(0), count()
    attend = node.peering._shared.attend

    def attended(*asked, within_s):
        begun.release()
        return attend(*asked, within_s=60 if next(num_asked) >= num_impatient else 0)

    monkeypatch.setattr(node.peering._shared, "attend", attended)
    monkeypatch.setattr(Fetcher, "hedge_after_s", 60.0)  # however slow the machine
    return begun


def test_nodes_that_do_not_know_of_one_another_yet_do_not_both_ask_the_origin(
    make_node, blind, monkeypatch
):
    first, second = make_node("a", blind), make_node("b", blind)
    begun, go_on = Event(), Event()
    origin, other = ScriptedSource(DATA), ScriptedSource(DATA)
    origin._script.append(origin.held(begun, go_on))
    waited = waits(first, monkeypatch)

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(read_all, first.open(REF, origin), len(DATA))
        assert begun.wait(60)
        two = threads.submit(read_all, second.open(REF, other), len(DATA))
        assert waited.acquire(timeout=60)
        go_on.set()

    assert (one.result(), two.result()) == (DATA, DATA)
    assert (given(origin), given(other)) == (NUM_CHUNKS, 0)


def test_who_waits_for_a_slow_origin_says_so_and_is_asked_again(make_node, blind, monkeypatch):
    first, second = make_node("a", blind), make_node("b", blind)
    begun, go_on = Event(), Event()
    origin, other = ScriptedSource(DATA), ScriptedSource(DATA)
    origin._script.append(origin.held(begun, go_on))
    waited = waits(first, monkeypatch, num_impatient=2)

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(read_all, first.open(REF, origin), len(DATA))
        assert begun.wait(60)
        two = threads.submit(read_all, second.open(REF, other), len(DATA))
        for _ in range(3):
            assert waited.acquire(timeout=60)
        go_on.set()

    assert (one.result(), two.result()) == (DATA, DATA)
    assert (given(origin), given(other)) == (NUM_CHUNKS, 0)


def test_a_home_whose_origin_is_slow_says_so_and_goes_on_fetching(make_node, monkeypatch):
    ref, data = many_stripes(1)
    nodes = {name: make_node(name) for name in "ab"}
    home = nodes.pop(home_of(ref.digest, 0, "ab"))
    (asking,) = nodes.values()
    begun, go_on = Event(), Event()
    origin, other = ScriptedSource(data), ScriptedSource(data)
    origin._script.append(origin.held(begun, go_on))
    waited = waits(home, monkeypatch, num_impatient=2)
    bring = home.peering._shared.bring

    def bring_impatiently(*asked, within_s):
        bring(*asked, within_s=0)
        assert begun.wait(60)

    monkeypatch.setattr(home.peering._shared, "bring", bring_impatiently)
    home.open(ref, origin)
    blob = asking.open(ref, other)
    home.peering._neighbourhood.refresh(within_s=60)

    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(read_all, blob)
        for _ in range(3):
            assert waited.acquire(timeout=60)
        go_on.set()

    assert read.result() == data
    assert (origin.requests, other.requests) == ([[0]], [])


def test_nobody_is_kept_waiting_for_what_comes_after_a_chunk_that_does_not_come(make_node):
    node = make_node("a")
    begun, go_on = Event(), Event()
    origin = ScriptedSource(DATA)
    origin._script.append(origin.held(begun, go_on))
    (flight,) = node.open(REF, origin).prefetch([6], Priority.DEMAND)
    assert begun.wait(60)

    assert ask(node, path_of(5, 6))[0] == 404, "at once: an answer after 54 s is none"
    go_on.set()
    assert flight.landed.wait(60)


def test_whose_node_is_gone_fetches_for_nobody_any_more(make_node, blind):
    gone, lost = Peer("gone", "127.0.0.1:1", True), 0
    blind.claim(REF.digest, lost, gone, instead_of=None)
    nodes = [make_node(name, blind) for name in "ab"]
    origins = [ScriptedSource(DATA) for _ in nodes]

    for node, origin in zip(nodes, origins, strict=True):
        assert read_all(node.open(REF, origin), len(DATA)) == DATA

    assert given(*origins) == NUM_CHUNKS, "the second node asks the first"


def test_a_node_that_comes_later_takes_all_from_those_that_have_it(make_node):
    first_origin, second_origin = ScriptedSource(DATA), ScriptedSource(DATA)
    assert read_all(make_node("a").open(REF, first_origin)) == DATA

    assert read_all(make_node("b").open(REF, second_origin)) == DATA
    assert given(first_origin) == NUM_CHUNKS and given(second_origin) == 0


def test_a_node_that_has_closed_a_blob_gives_what_it_has(make_node):
    first = make_node("a")
    blob = first.open(REF, ScriptedSource(DATA))
    blob.read(0, 1)
    blob.close()
    first.peering.closed(REF.digest)
    first.peering._neighbourhood.refresh(within_s=60)
    origin = ScriptedSource(DATA)

    assert read_all(make_node("b").open(REF, origin)) == DATA
    assert 0 not in {index for run in origin.requests for index in run}


def test_a_node_that_has_some_of_what_it_asks_for_takes_nobody_for_a_liar(make_node):
    assert read_all(make_node("a").open(REF, ScriptedSource(DATA))) == DATA
    second = make_node("b")
    known, in_the_middle = raw_blob([DATA[REF.table[5].offset : REF.table[5].end]])
    second.open(known, ScriptedSource(in_the_middle)).read(0, 1)
    origin = ScriptedSource(DATA)

    assert read_all(second.open(REF, origin), len(DATA)) == DATA
    assert given(origin) == 0
    assert second.fetcher.fetched_bytes["peer"] == len(DATA) - len(in_the_middle)


class Liar(BaseHTTPRequestHandler):
    """Gives the right number of wrong bytes."""

    protocol_version = "HTTP/1.1"
    num_asked = 0

    def do_GET(self):
        type(self).num_asked += 1
        first, last = self.path.partition("?")[0].rpartition("/")[2].split("-")
        body = bytes(sum(REF.table[it].length for it in range(int(first), int(last) + 1)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Redirector(Liar):
    elsewhere = ""

    def do_GET(self):
        type(self).num_asked += 1
        self.send_response(302)
        self.send_header("Location", f"{self.elsewhere}{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def serve():
    servers = []

    def start(handler):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def impostor(directory, address: str, name: str = "impostor") -> None:
    directory.exchange(Announcement(name, address, {REF.digest: True}))


def test_who_gives_wrong_bytes_is_asked_once_and_nothing_of_it_is_seen(make_node, directory, serve):
    handler = type("OneLiar", (Liar,), {})
    impostor(directory, serve(handler))
    node = make_node("a")
    origin = ScriptedSource(DATA)

    assert read_all(node.open(REF, origin)) == DATA
    assert handler.num_asked == 1 and given(origin) == NUM_CHUNKS
    assert node.fetcher.fetched_bytes["peer"] == 0


def test_who_is_in_the_directory_does_not_learn_the_token_that_signs(make_node, directory, serve):
    shown = []

    class Curious(Liar):
        def do_GET(self):
            shown.append(self.headers["Authorization"])
            super().do_GET()

    impostor(directory, serve(Curious))
    read_all(make_node("a").open(REF, ScriptedSource(DATA)))

    assert shown == [f"Bearer {bearer_of(TOKEN)}"]
    assert TOKEN not in shown[0]


def test_a_redirect_is_not_followed(make_node, directory, serve):
    target = type("Target", (Liar,), {})
    handler = type("OneRedirector", (Redirector,), {"elsewhere": f"http://{serve(target)}"})
    impostor(directory, serve(handler))

    assert read_all(make_node("a").open(REF, ScriptedSource(DATA))) == DATA
    assert handler.num_asked == 1 and target.num_asked == 0


def test_a_node_that_is_gone_costs_its_chunks_a_way_to_the_origin(make_node, directory):
    impostor(directory, "127.0.0.1:1")
    origin = ScriptedSource(DATA)
    assert read_all(make_node("a").open(REF, origin)) == DATA
    assert given(origin) == NUM_CHUNKS


def test_a_home_that_says_nothing_is_passed_over(make_node, directory, serve):
    silent = Event()

    class Silent(Liar):
        def do_GET(self):
            silent.wait(60)
            self.close_connection = True

    impostor(directory, serve(Silent))
    try:
        node = make_node("a", patience_s=0.2)
        assert read_all(node.open(REF, ScriptedSource(DATA))) == DATA
    finally:
        silent.set()


def test_a_home_that_waits_for_its_origin_for_ever_is_passed_over(make_node, directory, serve):
    class Later(Liar):
        num_asked = 0

        def do_GET(self):
            Later.num_asked += 1
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

    impostor(directory, serve(Later))
    node = make_node("a")
    origin = ScriptedSource(DATA)

    assert read_all(node.open(REF, origin), len(DATA)) == DATA
    assert given(origin) == NUM_CHUNKS
    assert Later.num_asked == 4, "then it is left alone for a while"


def test_without_a_directory_everything_comes_from_the_origin(make_node):
    class Away:
        def exchange(self, announcement):
            raise StoreUnavailable("the directory is away")

        def leave(self, announcement):
            raise StoreUnavailable("the directory is away")

        def claim(self, blob, stripe, peer, *, instead_of):
            raise StoreUnavailable("the directory is away")

    origin = ScriptedSource(DATA)
    assert read_all(make_node("a", Away()).open(REF, origin)) == DATA
    assert given(origin) == NUM_CHUNKS


def ask(node, path: str, *, bearer: str = bearer_of(TOKEN), table: str = REF.table.cut.hex()):
    connection = http.client.HTTPConnection("127.0.0.1", node.peering.server.port, timeout=60)
    headers = {"Authorization": f"Bearer {bearer}", "Firstlight-Table": table}
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def path_of(first: int, last: int, digest: str = REF.digest, query: str = "") -> str:
    return f"/v1/blobs/{digest}/chunks/{first}-{last}{query}"


def test_only_who_knows_the_token_gets_verified_chunks_and_nothing_else(make_node):
    node = make_node("a")
    blob = node.open(REF, ScriptedSource(DATA))
    blob.read(0, 2500)
    assert ask(node, path_of(0, 1)) == (200, DATA[: REF.table[1].end])

    for bearer in ("another", "", TOKEN):
        assert ask(node, path_of(0, 1), bearer=bearer) == (401, b"")
    assert ask(node, path_of(0, 1), table="0" * 32) == (409, b"")
    assert ask(node, path_of(0, 3)) == (200, DATA[: REF.table[2].end]), "the fourth is not here"
    assert ask(node, path_of(3, 3)) == (404, b"")
    assert ask(node, path_of(0, NUM_CHUNKS))[0] == 404, "there is no such chunk"
    assert ask(node, path_of(1, 0))[0] == 404
    assert ask(node, path_of(0, 0, "sha256:" + "0" * 64))[0] == 404
    for path in ("/", "/v1/blobs/../chunks/0-0", path_of(0, 0) + "&x", path_of(0, 10**7)):
        assert ask(node, path)[0] == 404


def test_a_node_fetches_for_others_only_what_it_is_the_home_of(make_node, directory):
    ref, data = many_stripes(NUM_CHUNKS)
    node = make_node("a")
    directory.exchange(Announcement("b", "127.0.0.1:1", {ref.digest: True}))
    origin = ScriptedSource(data)
    node.open(ref, origin)
    identity = ref.table.cut.hex()
    homes = [home_of(ref.digest, index, "ab") for index in range(NUM_CHUNKS)]
    own, foreign = homes.index("a"), homes.index("b")

    assert ask(node, path_of(foreign, foreign, ref.digest, "?fetch"), table=identity)[0] == 404
    assert ask(node, path_of(own, own, ref.digest), table=identity)[0] == 404
    status, body = ask(node, path_of(own, own, ref.digest, "?fetch"), table=identity)
    assert (status, body) == (200, data[ref.table[own].offset : ref.table[own].end])
    assert origin.requests == [[own]]


def test_uploads_share_one_rate_whoever_asks(make_node):
    node = make_node("a")
    node.open(REF, ScriptedSource(DATA)).read(0, 2500)
    ask(node, path_of(0, 1))
    assert node.peering.server.cap.uploaded_bytes == REF.table[1].end

    rate = Rate(1000)
    assert [rate.delay_s(size, now=now) for size, now in ((500, 0), (1000, 0), (100, 1))] == [
        0,
        0.5,
        0.5,
    ]
    assert rate.delay_s(100, now=10) == 0, "what was not given is not owed"
