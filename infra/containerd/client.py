"""A connection to containerd: calls in one namespace, tried again while it is away."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc

from infra.backoff import Backoff
from infra.containerd.method import Method, Request, Response

NAMESPACE = "default"
# After a plugin's restart containerd itself waits up to 3 s before it connects to it again.
AWAY_S = 20.0
_BACKOFF = Backoff(first_s=0.05, most_s=1.0)
_T = TypeVar("_T")


class CallFailed(Exception):
    """containerd refused a call; `code` says why, in its own terms."""

    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        super().__init__(f"{detail} ({code.name.lower().replace('_', ' ')})")
        self.code = code
        self.detail = detail


class Containerd:
    """Blocking calls, from any thread; raises CallFailed.

    What is not there for a moment (a restart of containerd, or of a plugin of it) is asked again
    until `away_s` have passed: a call may reach containerd twice.
    """

    def __init__(self, socket: Path, *, namespace: str = NAMESPACE, away_s: float = AWAY_S) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket.absolute()}")
        self._namespace = namespace
        self._away_s = away_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def call(
        self,
        method: Method[Request, Response],
        request: Request,
        *,
        lease: str | None = None,
        timeout_s: float = 60.0,
    ) -> Response:
        """One request, one answer; `lease` keeps what is made."""
        callee = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        metadata = self._metadata(lease)
        return self._again(lambda: callee(request, timeout=timeout_s, metadata=metadata))

    def read(
        self, method: Method[Request, Response], request: Request, *, timeout_s: float = 60.0
    ) -> list[Response]:
        """One request, all answers of a stream."""
        callee = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        metadata = self._metadata(None)
        return self._again(lambda: list(callee(request, timeout=timeout_s, metadata=metadata)))

    def write(
        self,
        method: Method[Request, Response],
        requests: Callable[[], Iterable[Request]],
        *,
        lease: str | None = None,
        timeout_s: float = 3600.0,
    ) -> list[Response]:
        """A stream of requests, made anew when tried again, and all answers."""
        callee = self._channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        metadata = self._metadata(lease)
        return self._again(
            lambda: list(callee(iter(requests()), timeout=timeout_s, metadata=metadata))
        )

    def _again(self, once: Callable[[], _T]) -> _T:
        deadline = time.monotonic() + self._away_s
        failures = 0
        while True:
            try:
                return once()
            except grpc.RpcError as error:
                failed = CallFailed(error.code(), error.details() or "")
            failures += 1
            wait_s = _BACKOFF.delay_s(failures)
            is_away = failed.code is grpc.StatusCode.UNAVAILABLE
            if not is_away or time.monotonic() + wait_s > deadline:
                raise failed
            threading.Event().wait(wait_s)

    def _metadata(self, lease: str | None) -> tuple[tuple[str, str | bytes], ...]:
        namespace = ("containerd-namespace", self._namespace)
        return (namespace,) if lease is None else (namespace, ("containerd-lease", lease))
