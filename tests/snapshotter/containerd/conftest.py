"""Our snapshotter behind its gRPC service, asked over its socket as containerd asks it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from infra.clock import SystemClock
from infra.containerd.client import CallFailed, Containerd
from infra.containerd.methods import Snapshots
from infra.containerd.protos import snapshots_pb2 as pb
from infra.containerd.protos import types_pb2
from snapshotter.containerd.folders import Folders
from snapshotter.containerd.layers import Layers
from snapshotter.containerd.server import SnapshotsServer
from snapshotter.containerd.snapshotter import Snapshotter
from snapshotter.containerd.store import SnapshotStore


@dataclass
class Asked:
    """The calls of the service, with their arguments and answers unwrapped."""

    folder: Path
    client: Containerd

    def prepare(self, key: str, parent: str = "", **labels: str) -> types_pb2.Mount:
        return self.prepare_labelled(key, parent, labels)

    def prepare_labelled(self, key: str, parent: str, labels: Mapping[str, str]) -> types_pb2.Mount:
        request = pb.PrepareSnapshotRequest(key=key, parent=parent, labels=labels)
        (mount,) = self.client.call(Snapshots.PREPARE, request).mounts
        return mount

    def view(self, key: str, parent: str = "") -> types_pb2.Mount:
        (mount,) = self.client.call(
            Snapshots.VIEW, pb.ViewSnapshotRequest(key=key, parent=parent)
        ).mounts
        return mount

    def mounts(self, key: str) -> types_pb2.Mount:
        (mount,) = self.client.call(Snapshots.MOUNTS, pb.MountsRequest(key=key)).mounts
        return mount

    def commit(self, key: str, name: str, **labels: str) -> None:
        self.client.call(
            Snapshots.COMMIT, pb.CommitSnapshotRequest(key=key, name=name, labels=labels)
        )

    def committed(self, *names: str, parent: str = "") -> None:
        """A chain of committed snapshots, empty all of them."""
        for name in names:
            self.prepare(f"key of {name}", parent)
            self.commit(f"key of {name}", name)
            parent = name

    def remove(self, name: str) -> None:
        self.client.call(Snapshots.REMOVE, pb.RemoveSnapshotRequest(key=name))

    def stat(self, name: str) -> pb.Info:
        return self.client.call(Snapshots.STAT, pb.StatSnapshotRequest(key=name)).info

    def update(self, info: pb.Info, *paths: str) -> pb.Info:
        request = pb.UpdateSnapshotRequest(info=info)
        request.update_mask.paths.extend(paths)
        return self.client.call(Snapshots.UPDATE, request).info

    def names(self, *filters: str) -> list[str]:
        pages = self.client.read(Snapshots.LIST, pb.ListSnapshotsRequest(filters=filters))
        return [info.name for page in pages for info in page.info]

    def usage(self, name: str) -> pb.UsageResponse:
        return self.client.call(Snapshots.USAGE, pb.UsageRequest(key=name))

    def cleanup(self) -> None:
        self.client.call(Snapshots.CLEANUP, pb.CleanupRequest())

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "snapshots").iterdir())


@contextmanager
def serving(folder: Path, layers: Layers) -> Iterator[Asked]:
    """Starts on what the folder holds, and stops."""
    store = SnapshotStore(folder / "snapshots.db")
    snapshotter = Snapshotter(
        store, Folders(folder / "snapshots"), layers, clock=SystemClock.start()
    )
    snapshotter.clean_up_after_crash()
    snapshotter.mount_layers()
    server = SnapshotsServer(snapshotter, folder / "snapshotter.sock")
    server.start()
    try:
        with Containerd(folder / "snapshotter.sock") as client:
            yield Asked(folder, client)
    finally:
        server.stop(grace_s=10)
        store.close()


def refusal(call: Callable[..., Any], *arguments: Any, **labels: str) -> grpc.StatusCode:
    """How a call is refused."""
    with pytest.raises(CallFailed) as failure:
        call(*arguments, **labels)
    return failure.value.code
