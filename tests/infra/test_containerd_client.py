"""Our connection to a real containerd."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from infra.containerd.client import CallFailed, Containerd
from infra.containerd.methods import Content, Leases
from infra.containerd.protos import content_pb2, leases_pb2
from tests.support.containerd import RunningContainerd

pytestmark = pytest.mark.real


def write(client: Containerd, content: bytes) -> str:
    """Under a lease, which is what keeps it."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    commit = content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT, ref=digest, total=len(content), expected=digest, data=content
    )
    client.write(Content.WRITE, lambda: [commit], lease="kept")
    return digest


def test_what_is_written_under_a_lease_is_read_again_and_known(
    containerd: RunningContainerd,
) -> None:
    with Containerd(containerd.socket, namespace="client") as client:
        client.call(Leases.CREATE, leases_pb2.CreateRequest(id="kept"))
        digest = write(client, b"light")

        read = client.read(Content.READ, content_pb2.ReadContentRequest(digest=digest))
        assert b"".join(it.data for it in read) == b"light"
        with pytest.raises(CallFailed) as refusal:
            write(client, b"light")
        assert refusal.value.code is grpc.StatusCode.ALREADY_EXISTS
        client.call(Leases.DELETE, leases_pb2.DeleteRequest(id="kept", sync=True))
        with pytest.raises(CallFailed) as refusal:
            client.call(Content.INFO, content_pb2.InfoRequest(digest=digest))
        assert refusal.value.code is grpc.StatusCode.NOT_FOUND


def test_a_call_waits_for_a_containerd_that_restarts(containerd: RunningContainerd) -> None:
    with Containerd(containerd.socket, away_s=100) as client, ThreadPoolExecutor(1) as pool:
        client.call(Leases.LIST, leases_pb2.ListRequest())
        containerd.kill()
        answer = pool.submit(client.call, Leases.LIST, leases_pb2.ListRequest())
        containerd.start()

        assert list(answer.result(timeout=100).leases) == []


def test_a_containerd_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    client = Containerd(tmp_path / "nothing.sock", away_s=0)
    with client, pytest.raises(CallFailed) as refusal:
        client.call(Leases.LIST, leases_pb2.ListRequest())
    assert refusal.value.code is grpc.StatusCode.UNAVAILABLE
