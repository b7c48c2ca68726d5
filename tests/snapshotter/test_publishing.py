import io
import json
from dataclasses import replace

import pytest

from infra.errors import Forbidden, ImageInvalid, SourceUnavailable
from infra.registry.manifest import MANIFEST, Descriptor
from infra.registry.reference import Reference
from snapshotter.blob.codec import codec_of
from snapshotter.blob.source import Decoded
from snapshotter.index.image_index import ARTIFACT_TYPE, LAYER
from snapshotter.index.layer_index import MEDIA_TYPE, Compression
from snapshotter.index.publish import ZSTD_LAYER, LayerReport, Published, Publisher
from snapshotter.index.publish_report import run_in_background
from snapshotter.registry.blob_ranges import RegistryBlob
from snapshotter.registry.referrers import attach, listed_beside, of_type
from tests.snapshotter.images import add_image, index_beside
from tests.snapshotter.makers import digest_of
from tests.snapshotter.registry_server import Clients, registry_server, status
from tests.snapshotter.tars import END, file, layer_tar, noise, words

INDEX = f"sha256:{'1' * 64}"
BASE = layer_tar({"bin/sh": words(200_000)})
TOP = layer_tar({"lib/big.so": noise(1_200_000), "app.py": b"import torch"})


@pytest.fixture(params=[True, False], ids=["lists referrers", "keeps no list"])
def server(request):
    with registry_server(lists_referrers=request.param) as server:
        yield server


@pytest.fixture
def registry(server):
    clients = Clients()
    yield clients()
    clients.close()


def publisher(registry, least_layer_bytes: int = 0) -> Publisher:
    return Publisher(registry, architecture="amd64", least_layer_bytes=least_layer_bytes)


def read_through(registry, image: Reference, manifest: str, layer: str) -> bytes:
    """The layer's tar as a node reads it: by the index, in ranges."""
    found = index_beside(registry, image, manifest)
    assert found is not None
    index = found.layer(registry, layer)
    assert index is not None
    source = Decoded(RegistryBlob(registry, image, layer), codec_of(index))
    return b"".join(part for chunk in index.table for part in source.chunks([chunk]))


def layers_of(registry, image: Reference) -> list[str]:
    return [layer["digest"] for layer in registry.manifest(image).content["layers"]]


def test_an_unmodified_image_is_readable_in_parts_once_it_was_indexed(server, registry):
    image = add_image(server, [BASE, TOP])
    assert index_beside(registry, image, image.digest) is None

    published = publisher(registry).index(image)

    assert published.image == str(image)
    assert [report.why_not for report in published.layers] == [None, None]
    for layer, tar in zip(layers_of(registry, image), (BASE, TOP), strict=True):
        assert read_through(registry, image, image.digest, layer) == tar


def test_indexing_twice_gives_the_same_index(server, registry):
    image = add_image(server, [BASE, TOP])

    assert publisher(registry).index(image) == publisher(registry).index(image)
    assert len(of_type(listed_beside(registry, image, image.digest), ARTIFACT_TYPE)) == 1


def test_small_layers_have_no_index(server, registry):
    image = add_image(server, [BASE, TOP])

    published = publisher(registry, least_layer_bytes=1_000_000).index(image)

    assert [report.why_not for report in published.layers] == ["it is small", None]
    found = index_beside(registry, image, image.digest)
    assert found is not None
    small, large = layers_of(registry, image)
    assert found.layer(registry, small) is None
    assert found.layer(registry, large) is not None


def test_hostile_layers_have_no_index_and_cost_the_others_nothing(server, registry):
    image = add_image(server, [file(b"../../etc/passwd", b"x" * 3000) + END, TOP])

    published = publisher(registry).index(image)

    reasons = [report.why_not for report in published.layers]
    assert reasons[0] is not None
    assert "leads elsewhere" in reasons[0]
    assert reasons[1] is None


def test_a_layer_that_is_not_what_the_image_says_has_no_index(server, registry):
    image = add_image(server, [TOP])
    manifest = json.loads(server.manifests[image.digest][1])
    config = json.loads(server.blobs[manifest["config"]["digest"]])
    config["rootfs"]["diff_ids"] = [digest_of(b"another tar")]
    raw = json.dumps(config).encode()
    manifest["config"] |= {"digest": server.add_blob(raw), "size": len(raw)}
    server.add_manifest("v2", manifest)

    published = publisher(registry).index(Reference(server.address, "team/model", "v2"))

    assert published.index is None
    assert published.layers[0].why_not == "its tar is not the one that the image names"


def test_a_converted_image_is_the_same_image_in_another_form(server, registry):
    image = add_image(server, [BASE, TOP])
    target = Reference(server.address, "team/model", "lazy")

    published = publisher(registry).convert(image, target)

    manifest = registry.manifest(target)
    assert published.image == f"{target}@{manifest.descriptor.digest}"
    assert {layer["mediaType"] for layer in manifest.content["layers"]} == {ZSTD_LAYER}
    assert manifest.content["config"] == registry.manifest(image).content["config"]
    for layer, tar in zip(layers_of(registry, target), (BASE, TOP), strict=True):
        found = index_beside(registry, target, manifest.descriptor.digest)
        assert found is not None
        index = found.layer(registry, layer)
        assert index is not None
        assert index.compression is Compression.ZSTD
        assert index.diff_id == digest_of(tar)
        assert read_through(registry, target, manifest.descriptor.digest, layer) == tar


def test_a_hostile_image_is_not_converted(server, registry):
    image = add_image(server, [file(b"a/../../b") + END])
    with pytest.raises(ImageInvalid, match="leads elsewhere"):
        publisher(registry).convert(image, Reference(server.address, "team/model", "lazy"))


def test_artifacts_of_others_stay_where_they_are(server, registry):
    image = add_image(server, [TOP])
    subject = registry.manifest(image).descriptor
    signature = attach(registry, image, subject, artifact_type="a/signature", blobs=[])

    publisher(registry).index(image)

    assert of_type(listed_beside(registry, image, image.digest), "a/signature") == [signature]
    assert len(of_type(listed_beside(registry, image, image.digest), ARTIFACT_TYPE)) == 1


def test_an_index_of_an_earlier_version_does_not_hide_a_new_one(server, registry):
    image = add_image(server, [TOP])
    subject = registry.manifest(image).descriptor
    layer = layers_of(registry, image)[0]
    blob = registry.push_blob(image, b"old", MEDIA_TYPE[:-1] + "1")
    old = replace(blob, annotations={LAYER: layer})
    old_type = ARTIFACT_TYPE[:-1] + "1"
    attach(registry, image, subject, artifact_type=old_type, blobs=[old])
    assert index_beside(registry, image, image.digest) is None

    publisher(registry).index(image)

    assert read_through(registry, image, image.digest, layer) == TOP


def index_blob(server, registry, image: Reference) -> str:
    found = index_beside(registry, image, image.digest)
    assert found is not None
    (blob,) = found.layers.values()
    return blob.digest


def test_a_flipped_bit_in_the_index_is_noticed(server, registry):
    image = add_image(server, [TOP])
    publisher(registry).index(image)
    digest = index_blob(server, registry, image)
    damaged = bytearray(server.blobs[digest])
    damaged[len(damaged) // 2] ^= 1
    server.blobs[digest] = bytes(damaged)

    found = index_beside(registry, image, image.digest)

    assert found is not None
    with pytest.raises(SourceUnavailable, match="wrong bytes"):
        found.layer(registry, layers_of(registry, image)[0])


def test_the_index_of_another_image_is_refused(server, registry):
    first = add_image(server, [TOP], tag="v1")
    second = add_image(server, [BASE], tag="v2")
    publisher(registry).index(first)
    (artifact,) = of_type(listed_beside(registry, first, first.digest), ARTIFACT_TYPE)
    raw = registry.manifest(first.at(artifact.digest)).content
    server.lists_referrers = False
    listed = [artifact.as_json()]
    index = {"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": listed}
    server.add_manifest(second.digest.replace(":", "-"), index)

    assert raw["subject"]["digest"] == first.digest
    with pytest.raises(ImageInvalid, match="beside another image"):
        index_beside(registry, second, second.digest)


HUGE = Descriptor(MEDIA_TYPE, digest_of(b"huge"), 2 << 30, {LAYER: digest_of(b"layer")})


@pytest.mark.parametrize(
    ("layers", "why"),
    [({"not": "a list"}, "lists no layers"), ([HUGE.as_json()], "has 2147483648 bytes")],
)
def test_an_index_that_lists_nonsense_is_refused(server, registry, layers, why):
    image = add_image(server, [TOP])
    subject = registry.manifest(image).descriptor
    manifest = {
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "subject": Descriptor(subject.media_type, subject.digest, subject.size, {}).as_json(),
        "layers": layers,
    }
    digest = server.add_manifest("evil", manifest)
    server.lists_referrers = False
    listed = [Descriptor(MANIFEST, digest, 1, {}, ARTIFACT_TYPE).as_json()]
    index = {"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": listed}
    server.add_manifest(image.digest.replace(":", "-"), index)

    with pytest.raises(ImageInvalid, match=why):
        index_beside(registry, image, image.digest)


def test_an_index_that_is_there_is_found_and_nothing_is_read_or_pushed(server, registry):
    image = add_image(server, [BASE, TOP])
    made = publisher(registry, least_layer_bytes=1_000_000).find_or_index(image)
    server.requests.clear()

    found = publisher(registry, least_layer_bytes=1_000_000).find_or_index(image)

    assert (found.image, found.index) == (made.image, made.index)
    assert [report.why_not for report in found.layers] == ["it is small", None]
    layers = layers_of(registry, image)
    assert not [path for method, path in server.requests if method in {"POST", "PUT"}]
    assert not [path for _, path in server.requests if path.endswith(tuple(layers))]


def test_an_index_that_is_not_the_pinned_one_is_not_found_but_made(server, registry):
    image = add_image(server, [BASE, TOP])
    subject = registry.manifest(image).descriptor
    made = publisher(registry).find_or_index(image)
    attach(registry, image, subject, artifact_type=ARTIFACT_TYPE, blobs=[])

    found = publisher(registry).find_or_index(image, pin=made.index)
    assert found.index == made.index
    old = attach(registry, image, subject, artifact_type=f"{ARTIFACT_TYPE}.old", blobs=[])
    for gone in (f"sha256:{'0' * 64}", str(image.digest), old.digest):
        assert publisher(registry).find_or_index(image, pin=gone).index == made.index


def test_who_may_not_push_is_told_before_any_layer_is_read(server, registry):
    image = add_image(server, [BASE, TOP])
    server.fail("POST .*/uploads/", status(403))

    with pytest.raises(Forbidden):
        publisher(registry).find_or_index(image)

    layers = layers_of(registry, image)
    assert not [path for _, path in server.requests if path.endswith(tuple(layers))]


def test_progress_never_goes_back_and_ends_at_one(server, registry):
    image = add_image(server, [BASE, TOP])
    fractions: list[float] = []

    Publisher(
        registry, architecture="amd64", on_progress=fractions.append, least_layer_bytes=0
    ).find_or_index(image)

    assert fractions == sorted(fractions) and len(fractions) == 4
    assert fractions[-1] == 1


def in_background(index) -> list[dict]:
    out = io.StringIO()
    run_in_background(index, out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_program_says_in_lines_of_json_what_came_of_an_image():
    layers = (
        LayerReport("sha256:a", 5, why_not="it is small"),
        LayerReport("sha256:b", 50, why_not="it is hostile"),
        LayerReport("sha256:c", 50),
    )

    def index(on_progress) -> Published:
        on_progress(0.5)
        return Published("r.io/x", INDEX, layers)

    progress, indexed = in_background(index)
    assert progress == {"kind": "progress", "fraction": 0.5}
    assert indexed == {
        "kind": "indexed",
        "index": INDEX,
        "layers": 3,
        "lazy": 1,
        "why_not": "it is hostile",
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Forbidden("no", hint="x" * 2000), "forbidden"),
        (SourceUnavailable("y" * 9000), "source-unavailable"),
        (OSError(28, "No space left on device"), "image-unavailable"),
        (ModuleNotFoundError("none", name="zstandard"), "dependency-missing"),
    ],
)
def test_a_program_says_so_too_where_it_cannot(error, code):
    def index(on_progress) -> Published:
        raise error

    (failed,) = in_background(index)
    assert (failed["kind"], failed["code"]) == ("failed", code)
