"""Containers and images of containerd, which runs them with runc: adapters of both ports."""

import json
import os
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed

from infra.containerd import labels, methods
from infra.containerd.client import CallFailed, Containerd
from infra.containerd.protos import (
    containers_pb2,
    content_pb2,
    images_pb2,
    snapshots_pb2,
    tasks_pb2,
)
from infra.containerd.snapshot_names import snapshot_name
from infra.contracts.stage import Moved
from infra.errors import ImageUnavailable
from worker.node.container.containers import ContainerFailed
from worker.node.container.image import Image
from worker.node.container.manifest import (
    CONFIGS,
    INDEXES,
    LARGEST_DOCUMENT,
    chain_id,
    choose_platform,
    program_of,
)

NODE_LABEL = "firstlight.node"
RUNTIME = "io.containerd.runc.v2"
STOP_S = 10.0  # for what was killed to be gone
_SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_KILL = 9
_LOOK_AGAIN_S = 0.02


class ContainerdContainers:
    """See the port. Names of containers are unique on the machine; `node` is whose they are."""

    def __init__(self, containerd: Containerd, *, node: str, snapshotter: str) -> None:
        self._containerd = containerd
        self._node = node
        self._snapshotter = snapshotter

    def start(self, name: str, image: Image, spec: dict[str, Any], *, output: Path) -> int:
        try:
            return self._start(name, image, spec, output)
        except CallFailed as error:
            raise ContainerFailed(f"containerd: {error}") from error

    def _start(self, name: str, image: Image, spec: dict[str, Any], output: Path) -> int:
        """The container first: what nobody names is collected."""
        call = self._containerd.call
        container = containers_pb2.Container(
            id=name,
            labels={NODE_LABEL: self._node},
            image=image.reference,
            runtime=containers_pb2.Container.Runtime(name=RUNTIME),
            spec=Packed(type_url=_SPEC_TYPE, value=json.dumps(spec).encode()),
            snapshotter=self._snapshotter,
            snapshot_key=name,
        )
        call(methods.Containers.CREATE, containers_pb2.CreateContainerRequest(container=container))
        prepared = call(
            methods.Snapshots.PREPARE,
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=self._snapshotter,
                key=name,
                parent=image.snapshot,
                labels={labels.ENTRYPOINT: _entrypoint(spec)},
            ),
        )
        into = output.as_uri()
        request = tasks_pb2.CreateTaskRequest(
            container_id=name, rootfs=prepared.mounts, stdout=into, stderr=into
        )
        pid = call(methods.Tasks.CREATE, request).pid
        call(methods.Tasks.START, tasks_pb2.StartRequest(container_id=name))
        return int(pid)

    def read(self, name: str) -> Moved | None:
        request = snapshots_pb2.StatSnapshotRequest(snapshotter=self._snapshotter, key=name)
        try:
            info = self._containerd.call(methods.Snapshots.STAT, request).info
        except CallFailed as error:
            raise ContainerFailed(f"containerd: {error}") from error
        said = info.labels.get(labels.READ)  # by our own snapshotter
        return None if said is None else Moved.model_validate_json(said)

    def started(self, name: str) -> None:
        """The snapshotter hears of it: the order of what it read is kept, the rest may come."""
        snapshot = snapshots_pb2.Info(name=name, labels={labels.READY: "true"})
        request = snapshots_pb2.UpdateSnapshotRequest(snapshotter=self._snapshotter, info=snapshot)
        request.update_mask.paths.append(f"labels.{labels.READY}")
        try:
            self._containerd.call(methods.Snapshots.UPDATE, request)
        except CallFailed as error:
            raise ContainerFailed(f"containerd: {error}") from error

    def remove(self, name: str) -> int | None:
        try:
            status = self._end_task(name)
            self._unless_gone(
                lambda: self._containerd.call(
                    methods.Containers.DELETE, containers_pb2.DeleteContainerRequest(id=name)
                )
            )
            self._unless_gone(
                lambda: self._containerd.call(
                    methods.Snapshots.REMOVE,
                    snapshots_pb2.RemoveSnapshotRequest(snapshotter=self._snapshotter, key=name),
                )
            )
        except CallFailed as error:
            raise ContainerFailed(f"containerd: {error}") from error
        return status

    def left_behind(self) -> tuple[str, ...]:
        filters = [f'labels."{NODE_LABEL}"=="{self._node}"']
        request = containers_pb2.ListContainersRequest(filters=filters)
        try:
            found = self._containerd.call(methods.Containers.LIST, request)
        except CallFailed as error:
            raise ContainerFailed(f"containerd: {error}") from error
        return tuple(container.id for container in found.containers)

    def _end_task(self, name: str) -> int | None:
        """Kills and reaps: a task that was killed takes a moment to end."""
        delete = tasks_pb2.DeleteTaskRequest(container_id=name)
        kill = tasks_pb2.KillRequest(container_id=name, signal=_KILL, all=True)
        deadline = time.monotonic() + STOP_S
        while True:
            try:
                return int(self._containerd.call(methods.Tasks.DELETE, delete).exit_status)
            except CallFailed as error:
                if error.code is grpc.StatusCode.NOT_FOUND:
                    return None
                if time.monotonic() > deadline:
                    raise
            with suppress(CallFailed):  # it has just ended, or its shim has: the next look tells
                self._containerd.call(methods.Tasks.KILL, kill)
            time.sleep(_LOOK_AGAIN_S)  # noqa: TID251 - in a thread, of a process that ends

    def _unless_gone(self, do: Callable[[], object]) -> None:
        try:
            do()
        except CallFailed as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise


def _entrypoint(spec: dict[str, Any]) -> str:
    said = shlex.join(spec["process"]["args"]).encode()[: labels.MOST_ENTRYPOINT_BYTES]
    return said.decode(errors="ignore")


class ContainerdImages:
    """See the port: what containerd has, and its snapshotter has mounted."""

    def __init__(self, containerd: Containerd, *, snapshotter: str) -> None:
        self._containerd = containerd
        self._snapshotter = snapshotter

    def find(self, reference: str, index: str | None) -> Image | None:
        try:
            return self._find(reference, index)
        except CallFailed as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise ImageUnavailable(f"containerd: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ImageUnavailable(f"{reference} is no image that can be run: {error}") from error

    def _find(self, reference: str, index: str | None) -> Image:
        named = images_pb2.GetImageRequest(name=reference)
        target = self._containerd.call(methods.Images.GET, named).image.target
        manifest = self._document(target.digest)
        if target.media_type in INDEXES:
            manifest = self._document(choose_platform(manifest, machine=os.uname().machine))
        if manifest["config"]["mediaType"] not in CONFIGS:
            raise ValueError("its config is of an unknown kind")
        config = self._document(manifest["config"]["digest"])
        chain = snapshot_name(chain_id(config["rootfs"]["diff_ids"]), index)
        self._containerd.call(
            methods.Snapshots.STAT,
            snapshots_pb2.StatSnapshotRequest(snapshotter=self._snapshotter, key=chain),
        )
        return Image(reference, chain, program_of(config))

    def _document(self, digest: str) -> dict[str, Any]:
        request = content_pb2.ReadContentRequest(digest=digest, size=LARGEST_DOCUMENT)
        parts = self._containerd.read(methods.Content.READ, request)
        document = json.loads(b"".join(part.data for part in parts))
        if not isinstance(document, dict):
            raise TypeError(f"{digest} is not an object")
        return document
