"""Whole images in a registry server."""

import json
from collections.abc import Sequence

from infra.registry.client import Registry
from infra.registry.manifest import MANIFEST
from infra.registry.reference import Reference
from snapshotter.index.image_index import ImageIndex, find_index
from snapshotter.registry.referrers import listed_beside
from tests.snapshotter.makers import digest_of
from tests.snapshotter.registry_server import RegistryServer
from tests.snapshotter.tars import gzipped

GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def add_image(server: RegistryServer, tars: Sequence[bytes], *, tag: str = "v1") -> Reference:
    """An image of gzip layers; its name with its digest."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
        }
    ).encode()
    layers = []
    for tar in tars:
        blob = gzipped(tar)
        digest = server.add_blob(blob)
        layers.append({"mediaType": GZIP_LAYER, "digest": digest, "size": len(blob)})
    described = {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": server.add_blob(config),
        "size": len(config),
    }
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}
    digest = server.add_manifest(tag, manifest)
    return Reference(server.address, "team/model", tag, digest)


def index_beside(registry: Registry, image: Reference, manifest: str) -> ImageIndex | None:
    """The index beside the image, as a node finds it."""
    return find_index(registry, image, manifest, listed_beside(registry, image, manifest))
