"""A model in a registry, as `oras push` leaves it."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from infra.registry.authorization import Authorization, no_login
from infra.registry.client import Registry
from infra.registry.connections import Connections
from infra.registry.manifest import MANIFEST
from infra.registry.reference import Reference


def push_model(files: Mapping[str, bytes | Path], address: str, name: str) -> str:
    """Pushes it to a registry of this machine; its URI."""
    connections = Connections(is_plain=lambda host: True)
    reference = Reference(address, f"models/{name}", "v1")
    with closing(Registry(connections, Authorization(connections, no_login))) as registry:
        layers = []
        for title, content in files.items():
            blob = registry.push_blob(reference, content, "application/octet-stream").as_json()
            layers.append(blob | {"annotations": {"org.opencontainers.image.title": title}})
        config = registry.push_blob(reference, b"{}", "application/vnd.oci.empty.v1+json").as_json()
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        registry.push_manifest(reference, manifest, name="v1")
    return f"oci://{reference}"
