"""Writes into containerd's store of blobs."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import grpc

from infra.containerd.client import CallFailed, Containerd
from infra.containerd.methods import Content
from infra.containerd.protos import content_pb2 as pb
from infra.registry.manifest import Descriptor

_PART_BYTES: Final = 1 << 20


class Contents:
    """Everything is written under `lease`, and again only where it is not there yet."""

    def __init__(self, containerd: Containerd, lease: str) -> None:
        self._containerd = containerd
        self._lease = lease

    def write(self, blob: Descriptor, content: bytes, labels: Mapping[str, str]) -> None:
        """A small blob with its labels; those of one that was there are set, too."""
        commit = self._request(pb.COMMIT, blob, 0, content, labels)
        if not self._write(lambda: iter([commit])):
            update = pb.UpdateRequest(info=pb.Info(digest=blob.digest, labels=labels))
            update.update_mask.paths.extend(f"labels.{name}" for name in labels)
            self._containerd.call(Content.UPDATE, update, lease=self._lease)

    def write_file(self, blob: Descriptor, path: Path) -> None:
        """A large blob."""
        self._write(lambda: self._parts(blob, path))

    def has(self, digest: str) -> bool:
        try:
            request = pb.InfoRequest(digest=digest)
            self._containerd.call(Content.INFO, request, lease=self._lease)
        except CallFailed as failed:
            if failed.code is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    def _parts(self, blob: Descriptor, path: Path) -> Iterator[pb.WriteContentRequest]:
        offset = 0
        with path.open("rb") as file:
            while data := file.read(_PART_BYTES):
                yield self._request(pb.WRITE, blob, offset, data)
                offset += len(data)
        yield self._request(pb.COMMIT, blob, offset, b"")

    def _request(
        self,
        action: pb.WriteAction,
        blob: Descriptor,
        offset: int,
        data: bytes,
        labels: Mapping[str, str] | None = None,
    ) -> pb.WriteContentRequest:
        return pb.WriteContentRequest(
            action=action,
            # a name of our own: who else writes the same blob now is neither waited for nor hurt
            ref=f"{self._lease}-{blob.digest}",
            total=blob.size,
            expected=blob.digest,
            offset=offset,
            data=data,
            labels=labels,
        )

    def _write(self, requests: Callable[[], Iterator[pb.WriteContentRequest]]) -> bool:
        """False if it was there."""
        try:
            self._containerd.write(Content.WRITE, requests, lease=self._lease)
        except CallFailed as failed:
            if failed.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            return False
        return True
