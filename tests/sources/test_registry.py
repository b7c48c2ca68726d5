"""Models that are artifacts of a registry."""

import base64
import json
import socket
from pathlib import Path

import pytest

from infra.errors import Forbidden, SourceInvalid, SourceUnavailable, WeightsUnavailable
from infra.registry.manifest import INDEX
from infra.registry.reach import Reach
from infra.sources.fetched import FetchedSource
from infra.sources.port import UNREACHED
from infra.sources.registry import RegistrySource
from tests.snapshotter.registry_server import RegistryServer, dropped, status
from tests.sources.conftest import RAW, RegistryWorld
from tests.sources.models import WEIGHTS, model_files, sha256, sharded

ORAS_FILE = "application/vnd.oci.image.layer.v1.tar"
TAR = "application/vnd.cncf.model.weight.v1.tar"


@pytest.fixture
def world(registry: RegistryServer, tmp_path: Path) -> RegistryWorld:
    return RegistryWorld(registry, tmp_path)


def fetched(world: RegistryWorld, uri: str, cache: Path) -> bytes:
    resolved, _ = world.source.resolve(uri)
    folder = world.source.fetch(resolved, cache, lambda fraction: None)
    return (folder / "model.safetensors").read_bytes()


def test_a_tag_that_moves_leaves_what_was_deployed(world: RegistryWorld, tmp_path: Path) -> None:
    resolved, _ = world.source.resolve(world.put(model_files()))
    world.put(model_files(model__safetensors=b"x" * len(WEIGHTS)))

    folder = world.source.fetch(resolved, tmp_path / "cache", lambda fraction: None)

    assert "@sha256:" in resolved.uri
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert {file.path: file.digest for file in resolved.files} == {
        name: f"sha256:{sha256(model_files()[name])}"
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }


def test_weights_are_read_in_ranges(
    world: RegistryWorld, tmp_path: Path, small_chunks: None
) -> None:
    resolved, _ = world.source.resolve(world.put(model_files()))
    world.server.requests.clear()

    world.source.fetch(resolved, tmp_path / "cache", lambda fraction: None)

    of_weights = [path for _, path in world.server.requests if path.endswith(sha256(WEIGHTS))]
    assert len(of_weights) == -(-len(WEIGHTS) // 16_000)


def test_files_as_oras_pushes_them_are_taken(world: RegistryWorld, tmp_path: Path) -> None:
    uri = world.push({name: (ORAS_FILE, content) for name, content in model_files().items()})

    assert fetched(world, uri, tmp_path / "cache") == WEIGHTS


@pytest.mark.parametrize(
    ("media_type", "annotations"),
    [(TAR, {}), (f"{ORAS_FILE}+gzip", {}), (ORAS_FILE, {"io.deis.oras.content.unpack": "true"})],
)
def test_layers_that_are_archives_are_refused(
    world: RegistryWorld, media_type: str, annotations: dict[str, str]
) -> None:
    files = {name: (media_type, content) for name, content in model_files().items()}

    with pytest.raises(SourceInvalid, match="archives of files are not read: 6") as refused:
        world.source.resolve(world.push(files, **annotations))

    assert "kit unpack" in (refused.value.hint or "")


def test_a_model_of_which_only_the_weights_are_packed_is_refused_as_that(
    world: RegistryWorld,
) -> None:
    """As KitOps packs: each part of a model is an archive."""
    files = {name: (RAW, content) for name, content in model_files().items()}
    files["model.safetensors"] = ("application/vnd.kitops.modelkit.model.v1.tar+gzip", b"\x1f\x8b")

    with pytest.raises(SourceInvalid, match="archives of files are not read: 1"):
        world.source.resolve(world.push(files))


def test_two_layers_of_one_name_and_names_that_lead_out_are_refused(world: RegistryWorld) -> None:
    uri = world.put(model_files())
    _, raw = world.server.manifests["v1"]
    manifest = json.loads(raw)
    twice = manifest | {"layers": manifest["layers"] * 2}
    world.server.add_manifest("v1", twice)

    with pytest.raises(SourceInvalid, match="two layers"):
        world.source.resolve(uri)

    outside = world.push({"../config.json": (RAW, b"{}")})
    with pytest.raises(SourceInvalid, match=r"no config\.json"):
        world.source.resolve(outside)


def test_a_list_of_manifests_is_no_model(world: RegistryWorld) -> None:
    uri = world.put(model_files())
    world.server.add_manifest("v1", {"mediaType": INDEX, "manifests": []})

    with pytest.raises(SourceInvalid, match="list of manifests"):
        world.source.resolve(uri)


def test_a_login_that_docker_wrote_opens_the_registry_again_when_it_is_refused(
    world: RegistryWorld, tmp_path: Path, small_chunks: None
) -> None:
    challenge = {"WWW-Authenticate": "Basic realm=x"}
    resolved_uri = world.put(sharded(2))
    world.login.write_text(
        json.dumps({"auths": {world.server.address: {"auth": _encoded("user:pass")}}})
    )
    world.server.fail("GET .*manifests", status(401, challenge))
    resolved, _ = world.source.resolve(resolved_uri)

    world.server.fail(f"GET .*{sha256(WEIGHTS)}", status(401, challenge))
    folder = world.source.fetch(resolved, tmp_path / "cache", lambda fraction: None)

    names = [file.path for file in resolved.files if file.path.endswith(".safetensors")]
    assert [(folder / name).read_bytes() for name in names] == [sharded(2)[n] for n in names]
    assert world.server.seen_authorization[-1] == f"Basic {_encoded('user:pass')}"


def test_a_registry_that_asks_for_a_login_that_nobody_made_says_so(world: RegistryWorld) -> None:
    uri = world.put(model_files())
    world.server.fail("manifests", status(401, {"WWW-Authenticate": "Basic realm=x"}))

    with pytest.raises(SourceUnavailable, match="asks for a login") as refused:
        world.source.resolve(uri)

    assert refused.value.hint == f"log in: docker login {world.server.address}"


def test_a_registry_elsewhere_is_spoken_to_without_tls_only_where_that_is_allowed(
    world: RegistryWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("infra.sources.registry.is_this_machine", lambda host: False)
    uri = world.put(model_files())

    with pytest.raises(SourceUnavailable):
        FetchedSource(RegistrySource(world.login)).resolve(uri)

    allowed = frozenset({world.server.address})
    world.source = FetchedSource(RegistrySource(world.login, plain_http=allowed))
    assert fetched(world, uri, tmp_path / "cache") == WEIGHTS


def test_who_deploys_with_a_key_reads_no_weights_of_private_networks_by_us(
    world: RegistryWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, port = world.put(model_files()), world.server.server_address[1]
    inside = f"oci://registry.test:{port}/org/model:v1"
    real = socket.getaddrinfo
    found = {"registry.test": "127.0.0.1", "metadata.test": "169.254.169.254"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **how: real(found.get(host, host), *rest, **how)
    )
    plain, asked_before = frozenset({f"registry.test:{port}"}), len(world.server.requests)
    guarded = RegistrySource(world.login, reach=Reach())
    named = RegistrySource(world.login, plain_http=plain, reach=Reach(plain))

    for source in (uri, inside, "oci://metadata.test/m:1", "oci://10.0.0.7:5000/m:1"):
        with pytest.raises(Forbidden, match="models may not have weights of") as refused:
            guarded.resolve(source)
        assert refused.value.hint is not None and "PLATFORM_IMAGE_SOURCES" in refused.value.hint
    with pytest.raises(Forbidden):
        named.resolve(uri)
    assert len(world.server.requests) == asked_before

    resolved, _ = named.resolve(inside)
    assert resolved.uri.startswith(f"oci://registry.test:{port}/org/model@sha256:")
    with pytest.raises(Forbidden):
        named.resolve(uri)  # what is named left no connection for what is not


@pytest.mark.parametrize(
    ("name", "error"),
    [("config.json", SourceUnavailable), ("model.safetensors", WeightsUnavailable)],
)
def test_a_registry_that_is_down_is_named_with_a_hint(
    world: RegistryWorld, tmp_path: Path, name: str, error: type[SourceUnavailable]
) -> None:
    resolved, _ = world.source.resolve(world.put(model_files()))
    world.server.fail(f"GET .*{sha256(model_files()[name])}", *[dropped] * 99)

    with pytest.raises(error) as told:
        world.source.fetch(resolved, tmp_path / "cache", lambda fraction: None)

    assert resolved.uri in told.value.detail and world.server.address in told.value.detail
    assert told.value.hint == UNREACHED


def _encoded(login: str) -> str:
    return base64.b64encode(login.encode()).decode()
