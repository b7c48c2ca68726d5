"""Brings one layer of an image into a snapshot: mounted by our snapshotter, or unpacked."""

import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import grpc

from infra.containerd.client import CallFailed, Containerd
from infra.containerd.methods import Diff, Snapshots
from infra.containerd.protos import diff_pb2, snapshots_pb2, types_pb2
from infra.containerd.snapshot_names import snapshot_name
from infra.errors import ImageInvalid, SourceUnavailable
from infra.registry.client import Registry
from infra.registry.reference import Reference
from snapshotter.containerd.contents import Contents
from snapshotter.containerd.layers import WantedLayer
from snapshotter.containerd.snapshotter import TARGET
from snapshotter.registry.image import ImageLayer

_APPLY_S: Final = 3600.0
_FIND_S: Final = 120.0
_TRIES: Final = 3  # it is said to be there and is not: somebody is removing it just now


class How(StrEnum):
    """What came of a layer."""

    PRESENT = "present"  # it was there
    MOUNTED = "mounted"  # its bytes come as they are read
    UNPACKED = "unpacked"  # downloaded whole


@dataclass(frozen=True, slots=True)
class LayerPuller:
    """For the layers of one image, the lowest first."""

    containerd: Containerd
    registry: Registry
    snapshotter: str
    image: Reference
    manifest: str  # digest
    index: str | None  # digest of the only index by which layers may be mounted
    contents: Contents
    lease: str

    def pull(self, layer: ImageLayer) -> How:
        """Afterwards there is a committed snapshot by the name of its chain (`snapshot_name`).

        Raises PlatformError and CallFailed.
        """
        if self._is_there(layer):
            return How.PRESENT
        wanted = WantedLayer(str(self.image), self.manifest, layer.blob.digest, self.index)
        name = self._name(layer.chain_id)
        labels = {TARGET: name, **wanted.labels()}
        for _ in range(_TRIES):
            key = f"extract-{secrets.token_hex(8)} {name}"
            try:
                mounts = self._prepare(key, self._name(layer.parent), labels)
            except CallFailed as failed:
                if failed.code is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                if self._is_there(layer):
                    return How.MOUNTED
                continue
            self._unpack(layer, key, mounts, labels)
            return How.UNPACKED
        raise SourceUnavailable(f"{name} is there and is not: somebody removes it")

    def _name(self, chain_id: str) -> str:
        """Of a snapshot; none stays none."""
        return snapshot_name(chain_id, self.index) if chain_id else ""

    def _is_there(self, layer: ImageLayer) -> bool:
        request = snapshots_pb2.StatSnapshotRequest(
            snapshotter=self.snapshotter, key=self._name(layer.chain_id)
        )
        try:
            self.containerd.call(Snapshots.STAT, request, lease=self.lease)
        except CallFailed as failed:
            if failed.code is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    def _prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> list[types_pb2.Mount]:
        request = snapshots_pb2.PrepareSnapshotRequest(
            snapshotter=self.snapshotter, key=key, parent=parent, labels=labels
        )
        answer = self.containerd.call(
            Snapshots.PREPARE, request, lease=self.lease, timeout_s=_FIND_S
        )
        return list(answer.mounts)

    def _unpack(
        self,
        layer: ImageLayer,
        key: str,
        mounts: list[types_pb2.Mount],
        labels: Mapping[str, str],
    ) -> None:
        try:
            self._download(layer)
            self._apply(layer, mounts)
            self._commit(layer, key, labels)
        except BaseException:
            remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=key)
            with suppress(CallFailed):
                self.containerd.call(Snapshots.REMOVE, remove, lease=self.lease)
            raise

    def _download(self, layer: ImageLayer) -> None:
        if self.contents.has(layer.blob.digest):
            return
        with tempfile.TemporaryDirectory(prefix="firstlight-") as folder:
            path = Path(folder, "layer")
            self.registry.download(self.image, layer.blob, path)
            self.contents.write_file(layer.blob, path)

    def _apply(self, layer: ImageLayer, mounts: list[types_pb2.Mount]) -> None:
        blob = layer.blob
        descriptor = types_pb2.Descriptor(
            media_type=blob.media_type, digest=blob.digest, size=blob.size
        )
        request = diff_pb2.ApplyRequest(diff=descriptor, mounts=mounts)
        applied = self.containerd.call(
            Diff.APPLY, request, lease=self.lease, timeout_s=_APPLY_S
        ).applied
        if applied.digest != layer.diff_id:
            raise ImageInvalid(
                f"layer {blob.digest} unpacks to {applied.digest}, the image says {layer.diff_id}"
            )

    def _commit(self, layer: ImageLayer, key: str, labels: Mapping[str, str]) -> None:
        request = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=self.snapshotter, name=labels[TARGET], key=key, labels=labels
        )
        self.containerd.call(Snapshots.COMMIT, request, lease=self.lease)
