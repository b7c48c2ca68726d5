"""Images are pinned at deploy: what registries say, what is told of them, what a revision holds."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control_plane.deployments.image_registries import RegistryImages
from control_plane.deployments.images import KnownImages
from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import spec_digest
from infra.contracts.image import ResolvedImage
from infra.errors import ImageInvalid, ImageUnavailable, PlatformError, SpecInvalid
from infra.registry.manifest import INDEX, MANIFEST
from infra.registry.reach import ANYWHERE, Reach
from infra.spec_file import load_spec
from tests.deployments.test_service import KNOWN
from tests.fleet.makers import CHAT, a_spec, an_image
from tests.snapshotter.registry_server import RegistryServer, registry_server, status

CONFIG = {"os": "linux", "config": {"Entrypoint": ["python3"]}, "rootfs": {"diff_ids": []}}


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with registry_server() as running:
        yield running


def push(server: RegistryServer, tag: str, config: Any = CONFIG) -> str:
    """An image without layers; its digest."""
    content = json.dumps(config).encode()
    described = {"digest": server.add_blob(content), "size": len(content), "mediaType": "c"}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": []}
    return server.add_manifest(tag, manifest)


def images(tmp_path: Path, default: str | None = None) -> RegistryImages:
    config = tmp_path / "config.json"
    return RegistryImages(default, reach=ANYWHERE, docker_config=config)


async def test_a_tag_is_pinned_to_what_it_means_now(server, tmp_path):
    digest = push(server, "one")
    found = await images(tmp_path).resolve(f"{server.address}/team/worker:one")
    assert found == ResolvedImage(reference=f"{server.address}/team/worker@{digest}")
    assert found.digest == digest


async def test_an_image_of_several_platforms_is_pinned_whole(server, tmp_path):
    digest = push(server, "amd64")
    listed = [
        {"digest": digest, "size": 1, "platform": {"os": "windows", "architecture": "amd64"}},
        {"digest": digest, "size": 1, "platform": {"os": "linux", "architecture": "arm64"}},
    ]
    list_digest = server.add_manifest("list", {"mediaType": INDEX, "manifests": listed})
    found = await images(tmp_path).resolve(f"{server.address}/worker:list")
    assert found is not None and found.digest == list_digest


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({**CONFIG, "os": "windows"}, "not an image for Linux"),
        ({**CONFIG, "config": {"Cmd": ["sh"]}}, "no entrypoint"),
        ({**CONFIG, "config": None}, "no entrypoint"),
        ([], "configuration"),
    ],
)
async def test_what_no_node_could_start_is_refused_at_deploy(server, tmp_path, config, why):
    push(server, "odd", config)
    with pytest.raises(ImageInvalid, match=why) as refused:
        await images(tmp_path).resolve(f"{server.address}/worker:odd")
    assert refused.value.param == "image"


async def test_an_image_for_no_linux_is_refused(server, tmp_path):
    server.add_manifest("list", {"mediaType": INDEX, "manifests": [{"platform": {"os": "plan9"}}]})
    with pytest.raises(ImageInvalid, match="nothing for Linux"):
        await images(tmp_path).resolve(f"{server.address}/worker:list")


async def refusal(images: RegistryImages, image: str | None) -> PlatformError:
    with pytest.raises(PlatformError) as refused:
        await images.resolve(image)
    return refused.value


async def test_a_tag_that_does_not_exist_and_registries_that_refuse_or_are_away(server, tmp_path):
    missing = await refusal(images(tmp_path), f"{server.address}/worker:none")
    server.fail("GET .*/manifests/", status(401), status(403))
    secret = await refusal(images(tmp_path), f"{server.address}/worker:one")
    forbidden = await refusal(images(tmp_path), f"{server.address}/worker:one")
    away = await refusal(images(tmp_path), "127.0.0.1:1/worker:one")

    assert (missing.slug, missing.hint) == ("image-invalid", "check repository and tag")
    for error in (secret, forbidden):
        assert error.slug == "image-unavailable"
        assert error.hint is not None and error.hint.startswith("docker login 127.0.0.1:")
    assert away.slug == "image-unavailable" and "127.0.0.1:1/worker:one" in away.detail


async def test_the_platforms_own_image_is_pinned_for_who_names_none(server, tmp_path):
    digest = push(server, "own")
    reference = f"{server.address}/worker:own"
    own = ResolvedImage(reference=f"{server.address}/worker@{digest}", is_asked_for=False)
    assert await images(tmp_path, reference).resolve(None) == own
    assert await images(tmp_path).resolve(None) is None
    pinned = f"127.0.0.1:1/worker@{digest}"  # nobody answers there
    found = await images(tmp_path, pinned).resolve(None)
    assert found == ResolvedImage(reference=pinned, is_asked_for=False)


async def test_who_deploys_is_told_that_the_platforms_own_image_is_at_fault(server, tmp_path):
    error = await refusal(images(tmp_path, f"{server.address}/worker:none"), None)
    assert isinstance(error, ImageUnavailable) and error.detail.startswith("PLATFORM_IMAGE: ")


# -- revisions -------------------------------------------------------------------------------------


async def test_a_tag_that_moved_makes_a_new_revision_and_one_that_stayed_does_not():
    known = KnownImages({"r.io/worker:1": an_image("a").reference})
    deployments = Deployments(MemoryDeploymentStore(), KNOWN, known)
    spec = a_spec(image="r.io/worker:1")

    first = await deployments.deploy(spec, now=1)
    again = await deployments.deploy(spec, now=2)
    known.images["r.io/worker:1"] = an_image("b").reference
    moved = await deployments.deploy(spec, now=3)
    known.images["r.io/worker:1"] = an_image("a").reference
    back = await deployments.deploy(spec, now=4)

    assert first.image == an_image("a")
    assert [it.name for it in (first, again, moved, back)] == [
        "chat@1",
        "chat@1",
        "chat@2",
        "chat@1",
    ]


async def test_a_change_of_the_platforms_own_image_reaches_a_model_when_it_is_deployed_again():
    known = KnownImages({None: an_image("a").reference})
    deployments = Deployments(MemoryDeploymentStore(), KNOWN, known)
    before = await deployments.deploy(a_spec(), now=1)
    known.images[None] = an_image("b").reference
    assert (await deployments.history(CHAT))[1] == (before,)
    after = await deployments.deploy(a_spec(), now=2)
    assert (before.image, after.image) == (
        an_image("a", is_asked_for=False),
        an_image("b", is_asked_for=False),
    )
    assert after.name == "chat@2"


async def test_an_image_that_does_not_resolve_changes_nothing():
    deployments = Deployments(MemoryDeploymentStore(), KNOWN)
    with pytest.raises(ImageInvalid):
        await deployments.deploy(a_spec(image="r.io/worker:1"), now=1)
    assert deployments.all() == ()


def test_whether_an_image_was_asked_for_is_in_the_spec_and_not_twice_in_the_digest():
    spec = a_spec()
    asked, own = an_image(), an_image(is_asked_for=False)
    assert spec_digest(spec, image=asked) == spec_digest(spec, image=own) != spec_digest(spec)


@pytest.mark.parametrize(
    "image", ["worker", "debian:12", "r.io/Worker", "r.io/w:", "r.io/w@sha256:1"]
)
def test_what_names_no_image_is_refused_with_its_line(image):
    with pytest.raises(SpecInvalid) as refused:
        load_spec(f"name: chat\nsource: hf://a/b\nimage: '{image}'\n", filename="model.yaml")
    [error] = refused.value.facts["errors"]
    assert (error["line"], error["path"]) == (3, "image")
    assert "host[:port]/repository" in error["message"]


async def test_the_operator_says_of_which_registries_models_may_name_images(server, tmp_path):
    push(server, "one")
    named, config = f"{server.address}/team/worker:one", tmp_path / "config.json"

    def allowing(*sources: str) -> RegistryImages:
        allowed = frozenset(sources)
        reach = Reach(allowed)
        return RegistryImages(named, allowed=allowed, reach=reach, docker_config=config)

    for source in (server.address, f"{server.address}/team", f"{server.address}/team/worker"):
        assert await allowing(source).resolve(named) is not None
    for source in ("r.io", f"{server.address}/tea", f"{server.address}/team/worker/more"):
        error = await refusal(allowing(source), named)
        assert (error.slug, error.hint) == ("forbidden", f"those of {source} may be named")
    assert (await refusal(allowing(), named)).hint == "leave out `image`"
    assert await allowing().resolve(None) is not None


async def test_who_deploys_with_a_key_asks_nothing_of_private_networks_by_us(
    server, tmp_path, monkeypatch
):
    push(server, "one")
    config, port = tmp_path / "config.json", server.server_address[1]
    named, inside = f"{server.address}/worker:one", f"registry.test:{port}/worker:one"
    real = socket.getaddrinfo
    found = {"registry.test": "127.0.0.1", "metadata.test": "169.254.169.254"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **how: real(found.get(host, host), *rest, **how)
    )
    guarded, asked_before = (
        RegistryImages(named, reach=Reach(), docker_config=config),
        len(server.requests),
    )

    for image in (named, inside, "metadata.test/w:1", "10.0.0.7:5000/w:1", "127.0.0.1:1/w:1"):
        error = await refusal(guarded, image)
        assert (error.slug, error.param) == ("forbidden", "image")
        assert error.hint is not None and "PLATFORM_IMAGE_SOURCES" in error.hint
    assert len(server.requests) == asked_before

    assert await guarded.resolve(None) is not None, "the platform's own is the operator's"
    plain = frozenset({f"registry.test:{port}"})
    for allowed in (plain, None):
        allowing = RegistryImages(
            None, allowed=allowed, reach=Reach(plain), plain_http=plain, docker_config=config
        )
        assert await allowing.resolve(inside) is not None
