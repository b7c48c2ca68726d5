from typing import Any

import pytest

from infra.errors import ImageInvalid
from snapshotter.registry.image import choose, layers_of
from tests.support.oci import digest_of

BLOBS = [
    {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": f"sha256:{c * 64}",
        "size": 3,
    }
    for c in "abc"
]
DIFF_IDS = [f"sha256:{c * 64}" for c in "123"]


def configuration(diff_ids: Any) -> dict[str, Any]:
    return {"rootfs": {"type": "layers", "diff_ids": diff_ids}}


def test_each_layer_is_named_together_with_those_below_it() -> None:
    layers = layers_of({"layers": BLOBS}, configuration(DIFF_IDS))

    assert [layer.blob.digest for layer in layers] == [blob["digest"] for blob in BLOBS]
    assert [layer.diff_id for layer in layers] == DIFF_IDS
    second = digest_of(f"{DIFF_IDS[0]} {DIFF_IDS[1]}".encode())
    third = digest_of(f"{second} {DIFF_IDS[2]}".encode())
    assert [layer.chain_id for layer in layers] == [DIFF_IDS[0], second, third]
    assert [layer.parent for layer in layers] == ["", DIFF_IDS[0], second]


@pytest.mark.parametrize(
    ("manifest", "diff_ids"),
    [
        ({}, DIFF_IDS),
        ({"layers": BLOBS}, DIFF_IDS[:2]),
        ({"layers": []}, []),
        ({"layers": BLOBS}, None),
        ({"layers": BLOBS}, ["sha256:1", *DIFF_IDS[1:]]),
        ({"layers": [{"digest": "../x"}]}, DIFF_IDS[:1]),
        ({"layers": BLOBS * 200}, DIFF_IDS * 200),
    ],
)
def test_an_image_that_contradicts_itself_is_refused(
    manifest: dict[str, Any], diff_ids: Any
) -> None:
    with pytest.raises(ImageInvalid):
        layers_of(manifest, configuration(diff_ids))


def test_of_many_platforms_ours_is_taken() -> None:
    listed = [
        {**blob, "platform": {"os": system, "architecture": architecture}}
        for blob, system, architecture in zip(
            BLOBS, ("windows", "linux", "linux"), ("amd64", "arm64", "amd64"), strict=True
        )
    ]
    assert choose(listed, architecture="amd64").digest == BLOBS[2]["digest"]
    for manifests in (listed, [], None, [1, {}]):
        with pytest.raises(ImageInvalid):
            choose(manifests, architecture="riscv64")
