"""`index` and `convert` as programs, against a real docker-registry."""

import json
import subprocess
import sys

import pytest

from infra.registry.reference import Reference
from snapshotter.blob.codec import codec_of
from snapshotter.blob.source import Decoded
from snapshotter.registry.blob_ranges import RegistryBlob
from tests.snapshotter.images import index_beside
from tests.snapshotter.registry_server import Clients
from tests.support.oci import base_layer, digest_of, push_image
from tests.support.registry import running_registry

pytestmark = pytest.mark.real


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snapshotter.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


def test_an_image_in_a_real_registry_is_indexed_and_converted(tmp_path):
    layer = base_layer()
    clients = Clients()
    with running_registry(tmp_path) as registry:
        image = push_image(registry.address, "base", [layer])
        target = f"{registry.address}/other:lazy"

        indexed = run("index", image.reference, "--least-layer-bytes", "0", "--json")
        assert indexed.returncode == 0, indexed.stderr
        converted = run("convert", image.reference, target, "--least-layer-bytes", "0", "--json")
        assert converted.returncode == 0, converted.stderr

        for said in (json.loads(indexed.stdout), json.loads(converted.stdout)):
            name = Reference.parse(said["image"])
            client = clients()
            found = index_beside(client, name, str(name.digest))
            assert found is not None
            (stored,) = found.layers
            index = found.layer(client, stored)
            assert index is not None
            source = Decoded(RegistryBlob(client, name, stored), codec_of(index))
            tar = b"".join(part for chunk in index.table for part in source.chunks([chunk]))
            assert tar == layer.tar
            assert index.diff_id == digest_of(tar)
        clients.close()


def test_an_image_that_is_not_there_is_said_to_be(tmp_path):
    with running_registry(tmp_path) as registry:
        outcome = run("index", f"{registry.address}/none:v1")

    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("error: ")
