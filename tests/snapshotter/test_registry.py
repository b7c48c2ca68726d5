import threading

import pytest

from infra.errors import Forbidden, ImageInvalid, NotFound, SourceUnavailable, Unauthorized
from infra.registry.authorization import Login, docker_logins
from infra.registry.manifest import MANIFEST, Descriptor
from infra.registry.reference import Reference
from snapshotter.registry.blob_ranges import RegistryBlob
from tests.snapshotter.registry_server import (
    Clients,
    Handler,
    dropped,
    registry_server,
    status,
    truncated,
)
from tests.support.processes import until

CONTENT = bytes(range(256)) * 20


@pytest.fixture
def server():
    with registry_server() as server:
        yield server


@pytest.fixture
def client(server):
    clients = Clients()
    yield clients
    clients.close()


@pytest.fixture
def image(server):
    return Reference(server.address, "team/model")


def describe(digest: str) -> Descriptor:
    return Descriptor("", digest, len(CONTENT), {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r.io/a/b", Reference("r.io", "a/b")),
        ("localhost:5000/a:v1", Reference("localhost:5000", "a", "v1")),
        (f"r.io/a@sha256:{'0' * 64}", Reference("r.io", "a", None, f"sha256:{'0' * 64}")),
        (f"r.io/a:v@sha256:{'0' * 64}", Reference("r.io", "a", "v", f"sha256:{'0' * 64}")),
    ],
)
def test_a_reference_says_which_image(text, expected):
    assert Reference.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "debian",
        "library/debian",
        "r.io/../x",
        "r.io/A",
        "r.io/a@sha256:12",
        "r.io/a:b:c",
        "http://r.io/a",
        "r.io/" + "a" * 300,
        "r.io/a\n",
    ],
)
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(ImageInvalid):
        Reference.parse(text)


def read(blob: RegistryBlob, offset: int, length: int) -> bytes:
    return b"".join(blob.parts(offset, length))


def test_ranges_are_exact(server, image, client):
    blob = RegistryBlob(client(), image, server.add_blob(CONTENT))

    assert read(blob, 0, 10) == CONTENT[:10]
    assert read(blob, 1000, 3000) == CONTENT[1000:4000]
    with pytest.raises(SourceUnavailable):
        read(blob, len(CONTENT) - 5, 10)


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503, {"Retry-After": "3"}),
        status(429, {"Retry-After": "2"}),
        truncated,
        dropped,
    ],
)
def test_a_registry_that_stumbles_is_asked_again(server, image, client, fault):
    blob = RegistryBlob(client(), image, server.add_blob(CONTENT))
    server.fail("GET", fault, fault)

    assert read(blob, 0, 10) == CONTENT[:10]


@pytest.mark.parametrize(
    "fault", [status(200), status(206, {"Content-Range": "bytes 5-14/5120"}), status(206)]
)
def test_another_range_than_was_asked_for_is_no_answer(server, image, client, fault):
    blob = RegistryBlob(client(), image, server.add_blob(CONTENT))
    server.fail("GET", fault)

    with pytest.raises(SourceUnavailable, match="another range"):
        read(blob, 0, 10)
    assert read(blob, 0, 10) == CONTENT[:10]


def test_a_registry_that_ignores_ranges_does_not_send_us_the_whole_blob_for_each(
    server, image, client
):
    def whole(handler: Handler) -> bool:
        handler.answer(200, CONTENT)
        return True

    blob = RegistryBlob(client(), image, server.add_blob(CONTENT))
    server.fail("GET", *[whole] * 4)

    with pytest.raises(SourceUnavailable, match="another range"):
        read(blob, 0, 10)


def test_an_answer_that_stalls_ends(server, image, client):
    released = threading.Event()

    def stall(handler: Handler) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Length", "10")
        handler.send_header("Content-Range", f"bytes 0-9/{len(CONTENT)}")
        handler.end_headers()
        handler.wfile.flush()
        released.wait(60)
        return True

    blob = RegistryBlob(client(stall_s=0.05), image, server.add_blob(CONTENT))
    server.fail("GET", *[stall] * 4)

    with pytest.raises(SourceUnavailable, match="timed out"):
        read(blob, 0, 10)
    released.set()


def test_a_connection_that_the_registry_closed_meanwhile_is_not_used(server, image, client):
    blob = RegistryBlob(client(), image, server.add_blob(CONTENT))

    def last(handler: Handler) -> bool:
        handler.close_connection = True
        return False

    server.fail("GET", last)
    for _ in range(3):
        assert read(blob, 0, 10) == CONTENT[:10]


def test_connections_for_requests_that_leave_together_are_made_before(server, image, client):
    registry = client()
    server.add_manifest("latest", {"mediaType": MANIFEST})
    registry.make_ready(image, 2)
    for connecting in [it for it in threading.enumerate() if it.name == "connect"]:
        connecting.join()

    registry.make_ready(image, 1)
    registry.manifest(image)

    until(lambda: len(server.open_sockets) == 2, seconds=60, what="there are the two and no third")
    nobody = Reference("127.0.0.1:1", "a")
    registry.make_ready(nobody, 1)
    with pytest.raises(SourceUnavailable):
        registry.manifest(nobody)


def test_a_blob_is_verified_and_bounded(server, image, client):
    digest = server.add_blob(CONTENT)

    def flipped(handler: Handler) -> bool:
        handler.answer(200, CONTENT[:-1] + b"?")
        return True

    server.fail("GET", flipped)
    assert client().blob(image, describe(digest), most_bytes=1 << 20) == CONTENT
    server.fail("GET", flipped, flipped)
    with pytest.raises(SourceUnavailable, match="wrong bytes"):
        client().blob(image, describe(digest), most_bytes=1 << 20)
    with pytest.raises(ImageInvalid):
        client().blob(image, describe(digest), most_bytes=100)


def test_a_download_is_verified_or_nothing(server, image, client, tmp_path):
    digest = server.add_blob(CONTENT)
    server.fail("GET", truncated, dropped)

    client().download(image, describe(digest), tmp_path / "layer")

    assert (tmp_path / "layer").read_bytes() == CONTENT
    server.blobs[digest] = CONTENT[::-1]
    with pytest.raises(SourceUnavailable):
        client().download(image, describe(digest), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_is_missing_or_forbidden_is_not_asked_twice(server, image, client):
    for code, kind in ((404, NotFound), (403, Forbidden)):
        server.requests.clear()
        server.fail("GET", status(code))
        with pytest.raises(kind):
            client().manifest(image)
        assert len(server.requests) == 1


def test_a_manifest_with_another_digest_is_refused(server, image, client):
    digest = server.add_manifest("latest", {"mediaType": MANIFEST, "layers": []})
    assert client().manifest(image).descriptor.digest == digest
    assert client().manifest(image.at(digest)).descriptor.media_type == MANIFEST

    server.manifests[digest] = (MANIFEST, b'{"layers": ["evil"]}')
    with pytest.raises(SourceUnavailable, match="another digest"):
        client().manifest(image.at(digest))


def token_service(handler: Handler) -> bool:
    handler.answer(200, b'{"token": "t%d", "expires_in": 300}' % len(handler.server.requests))
    return True


def challenge(server) -> dict[str, str]:
    realm = f"http://{server.address}/token"
    return {"WWW-Authenticate": f'Bearer realm="{realm}",service="registry"'}


def test_a_token_is_fetched_kept_and_fetched_again_when_it_is_refused(server, image, client):
    blob = RegistryBlob(
        client(lambda host: Login("ann", "secret")), image, server.add_blob(CONTENT)
    )
    server.fail("GET /token", token_service, token_service)
    server.fail("GET /v2", status(401, challenge(server)))

    read(blob, 0, 10)
    read(blob, 10, 10)
    server.fail("GET /v2", status(401, challenge(server)))
    read(blob, 20, 10)

    tokens = [sent for sent in server.seen_authorization if sent and sent.startswith("Bearer")]
    assert tokens == ["Bearer t2", "Bearer t2", "Bearer t2", "Bearer t6"]
    asked = next(path for _, path in server.requests if path.startswith("/token"))
    assert asked == "/token?scope=repository%3Ateam%2Fmodel%3Apull&service=registry"
    assert sum(bool(sent and sent.startswith("Basic")) for sent in server.seen_authorization) == 2


def test_a_token_that_ran_out_is_not_sent(server, image, client):
    now = [0.0]
    registry = client(now=lambda: now[0])
    blob = RegistryBlob(registry, image, server.add_blob(CONTENT))
    server.fail("GET /token", token_service)
    server.fail("GET /v2", status(401, challenge(server)))
    read(blob, 0, 10)

    now[0] = 301.0
    read(blob, 0, 10)

    assert server.seen_authorization[-1] is None


def test_a_login_that_is_refused_is_an_error_that_says_what_to_do(server, image, client):
    server.fail("GET", *[status(401, {"WWW-Authenticate": "Basic realm=x"})] * 4)

    with pytest.raises(Unauthorized) as failure:
        client().manifest(image)
    assert "docker login" in (failure.value.hint or "")
    with pytest.raises(Unauthorized):
        client(lambda host: Login("ann", "wrong")).manifest(image)


def test_a_login_does_not_follow_a_redirect_to_another_host(server, image, client):
    digest = server.add_blob(CONTENT)
    with registry_server() as elsewhere:
        elsewhere.add_blob(CONTENT)
        there = f"http://{elsewhere.address}/v2/x/blobs/{digest}"
        server.fail("GET /v2", status(401, {"WWW-Authenticate": "Basic realm=x"}))
        server.fail("GET /v2", status(307, {"Location": there}))

        blob = RegistryBlob(client(lambda host: Login("ann", "secret")), image, digest)

        assert read(blob, 5, 5) == CONTENT[5:10]
        assert elsewhere.seen_authorization == [None]
        assert server.seen_authorization[1] is not None


def test_what_may_not_be_reached_is_not_connected_to_though_a_redirect_leads_there(server, image):
    from infra.registry.connections import AddressForbidden, Connections

    connections = Connections(is_plain=lambda host: True, may_reach="127.0.0.1".__eq__)
    inside = f"http://127.0.0.2:{server.server_address[1]}/v2/"
    server.fail("GET", status(307, {"Location": inside}))

    with pytest.raises(AddressForbidden, match=r"127\.0\.0\.2"):
        connections.ask("GET", f"http://{server.address}/v2/", most_bytes=1000)
    assert len(server.requests) == 1
    connections.close()


def test_redirects_end(server, image, client):
    loop = status(302, {"Location": f"http://{server.address}/v2/a/manifests/latest"})
    server.fail("GET", *[loop] * 100)

    with pytest.raises(SourceUnavailable, match="without end"):
        client().manifest(image)


def test_a_token_of_an_encrypted_registry_is_never_asked_for_in_the_clear(server):
    from infra.registry.authorization import Authorization, no_login
    from infra.registry.connections import Connections

    connections = Connections(is_plain=lambda host: False)
    said = f'Bearer realm="http://{server.address}/token"'

    with pytest.raises(Unauthorized):
        Authorization(connections, no_login).answer("r.io", "s", said, sent=None)
    assert server.requests == []


def test_a_login_goes_without_tls_only_where_that_was_named(server):
    from infra.registry.authorization import Authorization
    from infra.registry.connections import Connections

    connections = Connections(is_plain=lambda host: host == "named:5000")
    authorization = Authorization(connections, lambda host: Login("ann", "secret"))
    said = f'Bearer realm="http://{server.address}/token"'

    with pytest.raises(Unauthorized):
        authorization.answer("named:5000", "s", said, sent=None)
    assert server.requests == []


def test_nothing_is_uploaded_in_the_clear_for_an_encrypted_registry(server):
    from contextlib import contextmanager

    from infra.registry.authorization import Authorization
    from infra.registry.client import Registry
    from infra.registry.connections import Connections

    class Sends(Connections):
        """An encrypted registry that has the content sent elsewhere."""

        @contextmanager
        def opened(self, method, url, **sent):
            assert url.startswith("https:") and method in {"HEAD", "POST"}, url
            status = 404 if method == "HEAD" else 202
            yield _Answered(status, {"location": f"http://{server.address}/upload"})

    class _Answered:
        def __init__(self, status, headers):
            self.status, self.headers = status, headers

        def whole(self, most_bytes=0, sink=None):
            from infra.registry.connections import Answer

            return Answer(self.status, self.headers, b"")

    connections = Sends(is_plain=lambda host: False)
    registry = Registry(
        connections, Authorization(connections, lambda host: None), pause=lambda s: None
    )

    with pytest.raises(SourceUnavailable, match="without TLS"):
        registry.push_blob(Reference("registry.example", "team/model"), CONTENT, "text/plain")
    assert server.requests == []


def test_what_is_pushed_is_there_and_not_pushed_twice(server, image, client, tmp_path):
    registry = client()
    (tmp_path / "layer").write_bytes(CONTENT)
    server.fail("PUT", status(500))

    first = registry.push_blob(image, tmp_path / "layer", "text/plain")
    second = registry.push_blob(image, CONTENT, "text/plain")

    assert first == second == Descriptor("text/plain", first.digest, len(CONTENT), {})
    assert server.blobs[first.digest] == CONTENT
    assert [method for method, _ in server.requests].count("PUT") == 2


def test_logins_are_those_of_docker(tmp_path):
    path = tmp_path / "config.json"
    logins = docker_logins(path)
    assert logins("r.io") is None

    path.write_text('{"auths": {"r.io": {"auth": "YW5uOnNlY3JldDp4"}, "x.io": {"auth": "?"}}}')

    assert logins("r.io") == Login("ann", "secret:x")
    assert logins("other.io") is None
    with pytest.raises(Unauthorized):
        logins("x.io")


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"digest": "sha256:1", "size": 1},
        {"digest": f"sha256:{'0' * 64}", "size": -1},
        {"digest": f"sha256:{'0' * 64}", "size": 1 << 60},
        {"digest": f"sha256:{'0' * 64}", "size": 1, "annotations": []},
        {"digest": f"sha256:{'0' * 64}", "size": 1, "mediaType": 5},
    ],
)
def test_descriptors_that_lie_are_refused(value):
    if value and value.get("annotations") == []:
        value["annotations"] = ["x"]
    with pytest.raises(ImageInvalid):
        Descriptor.parse(value)
