"""containerd's snapshots service over gRPC, on a unix socket."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from infra.containerd.method import Method, Request, Response
from infra.containerd.methods import Snapshots
from infra.containerd.protos import snapshots_pb2 as pb
from infra.containerd.protos import types_pb2
from infra.errors import PlatformError
from snapshotter.containerd.mounts import Mount
from snapshotter.containerd.snapshot import Kind, Reason, Refused, Snapshot
from snapshotter.containerd.snapshotter import Snapshotter

log = structlog.get_logger()

_THREADS: Final = 16
_PAGE: Final = 100  # snapshots in one message of a list
_CODES: Final = {
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
}
_KINDS: Final = {
    Kind.VIEW: pb.VIEW,
    Kind.ACTIVE: pb.ACTIVE,
    Kind.COMMITTED: pb.COMMITTED,
}


class SnapshotsServer:
    """Answers on `socket` from `start` to `stop`."""

    def __init__(self, snapshotter: Snapshotter, socket: Path) -> None:
        self._socket = socket
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc")
        self._server = grpc.server(pool)
        service = _Service(snapshotter)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            Snapshots.PREPARE.name: _handler(Snapshots.PREPARE, service.prepare),
            Snapshots.VIEW.name: _handler(Snapshots.VIEW, service.view),
            Snapshots.MOUNTS.name: _handler(Snapshots.MOUNTS, service.mounts),
            Snapshots.COMMIT.name: _handler(Snapshots.COMMIT, service.commit),
            Snapshots.REMOVE.name: _handler(Snapshots.REMOVE, service.remove),
            Snapshots.STAT.name: _handler(Snapshots.STAT, service.stat),
            Snapshots.UPDATE.name: _handler(Snapshots.UPDATE, service.update),
            Snapshots.LIST.name: _stream_handler(Snapshots.LIST, service.walk),
            Snapshots.USAGE.name: _handler(Snapshots.USAGE, service.usage),
            Snapshots.CLEANUP.name: _handler(Snapshots.CLEANUP, service.cleanup),
        }
        generic = grpc.method_handlers_generic_handler(Snapshots.SERVICE, handlers)
        self._server.add_generic_rpc_handlers((generic,))

    def start(self) -> None:
        """Listens; a socket that a dead server left is replaced."""
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix://{self._socket}")
        self._server.start()
        self._socket.chmod(0o600)

    def stop(self, *, grace_s: float) -> None:
        """Takes no more calls and waits for those that run."""
        self._server.stop(grace_s).wait()
        self._socket.unlink(missing_ok=True)


class _Service:
    """Messages in, messages out."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def prepare(self, request: pb.PrepareSnapshotRequest) -> pb.PrepareSnapshotResponse:
        mount = self._snapshotter.prepare(request.key, request.parent, request.labels)
        return pb.PrepareSnapshotResponse(mounts=[_mount(mount)])

    def view(self, request: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        mount = self._snapshotter.view(request.key, request.parent, request.labels)
        return pb.ViewSnapshotResponse(mounts=[_mount(mount)])

    def mounts(self, request: pb.MountsRequest) -> pb.MountsResponse:
        return pb.MountsResponse(mounts=[_mount(self._snapshotter.mounts(request.key))])

    def commit(self, request: pb.CommitSnapshotRequest) -> Empty:
        self._snapshotter.commit(request.key, request.name, request.labels)
        return Empty()

    def remove(self, request: pb.RemoveSnapshotRequest) -> Empty:
        self._snapshotter.remove(request.key)
        return Empty()

    def stat(self, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(info=_info(self._snapshotter.stat(request.key)))

    def update(self, request: pb.UpdateSnapshotRequest) -> pb.UpdateSnapshotResponse:
        changed = self._snapshotter.update(
            request.info.name, request.info.labels, request.update_mask.paths
        )
        return pb.UpdateSnapshotResponse(info=_info(changed))

    def walk(self, request: pb.ListSnapshotsRequest) -> Iterator[pb.ListSnapshotsResponse]:
        found = self._snapshotter.walk(request.filters)
        for start in range(0, len(found), _PAGE):
            page = found[start : start + _PAGE]
            yield pb.ListSnapshotsResponse(info=[_info(it) for it in page])

    def usage(self, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = self._snapshotter.usage(request.key)
        return pb.UsageResponse(size=usage.size_bytes, inodes=usage.inodes)

    def cleanup(self, request: pb.CleanupRequest) -> Empty:
        self._snapshotter.cleanup()
        return Empty()


def _handler(
    method: Method[Request, Response], answer: Callable[[Request], Response]
) -> "grpc.RpcMethodHandler[Request, Response]":
    def guarded(request: Request, context: grpc.ServicerContext) -> Response:
        try:
            return answer(request)
        except Exception as error:
            _abort(context, error, method.name)

    return grpc.unary_unary_rpc_method_handler(
        guarded,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


def _stream_handler(
    method: Method[Request, Response], answer: Callable[[Request], Iterator[Response]]
) -> "grpc.RpcMethodHandler[Request, Response]":
    def guarded(request: Request, context: grpc.ServicerContext) -> Iterator[Response]:
        try:
            yield from answer(request)
        except Exception as error:
            _abort(context, error, method.name)

    return grpc.unary_stream_rpc_method_handler(
        guarded,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


def _abort(context: grpc.ServicerContext, error: Exception, method: str) -> NoReturn:
    """Ends a call as containerd expects; what nobody expects is logged."""
    match error:
        case Refused():
            context.abort(_CODES[error.reason], str(error))
        case PlatformError():
            log.warning("call.failed", method=method, error=error.detail)
            context.abort(grpc.StatusCode.UNAVAILABLE, error.detail)
        case _:
            log.error("call.failed", method=method, exc_info=error)
            context.abort(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")


def _mount(mount: Mount) -> types_pb2.Mount:
    return types_pb2.Mount(type=mount.type, source=mount.source, options=mount.options)


def _info(snapshot: Snapshot) -> pb.Info:
    return pb.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=_KINDS[snapshot.kind],
        created_at=_timestamp(snapshot.created_ns),
        updated_at=_timestamp(snapshot.updated_ns),
        labels=snapshot.labels,
    )


def _timestamp(unix_ns: int) -> Timestamp:
    seconds, nanos = divmod(unix_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
