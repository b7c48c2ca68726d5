"""What containerd refuses, in the platform's words."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from infra.containerd.client import CallFailed
from infra.errors import DependencyMissing, PlatformError, StoreUnavailable


def check_listening(address: Path) -> None:
    """Says at once that nobody is there, where a call would wait for one that restarts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(address))
        except OSError as error:
            raise _away(address, error.strerror or "it cannot be reached") from error


@contextmanager
def told_as_problems(address: Path) -> Iterator[None]:
    """Turns a CallFailed into a PlatformError that says what to do about it."""
    try:
        yield
    except CallFailed as failed:
        raise _problem(failed, address) from failed


def _problem(failed: CallFailed, address: Path) -> PlatformError:
    if failed.code is grpc.StatusCode.UNAVAILABLE:
        return _away(address, failed.detail)
    if "snapshotter not loaded" in failed.detail:
        return DependencyMissing(
            f"containerd on {address} does not know our snapshotter: {failed.detail}",
            hint="add it to [proxy_plugins] in containerd's configuration, as docs/images.md says",
        )
    return StoreUnavailable(f"containerd refuses: {failed}")


def _away(address: Path, reason: str) -> DependencyMissing:
    return DependencyMissing(
        f"containerd, or its plugin, does not answer on {address}: {reason}",
        hint="start containerd and `python -m snapshotter.main serve`, as docs/images.md says,"
        " or set PLATFORM_SNAPSHOTTER_CONTAINERD_SOCKET",
    )
