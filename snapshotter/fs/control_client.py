"""Asks the data process, and waits for the next one while it is being replaced."""

import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from infra.backoff import Backoff
from infra.errors import PlatformError, StoreUnavailable
from infra.json_socket import receive, send

_BACKOFF = Backoff(first_s=0.02, most_s=0.5)
_ANSWER_S = 30.0


class Control(Protocol):
    """Which files are served; both may be repeated."""

    def add(self, name: str, spec: Mapping[str, Any]) -> int:
        """Serves a file from now on, after restarts too; returns its `head_bytes`.

        Raises PlatformError.
        """
        ...

    def remove(self, name: str) -> None:
        """Serves it no longer. Raises PlatformError."""
        ...


class ControlClient:
    """Control over the socket; any thread may use it."""

    def __init__(self, path: Path, *, deadline_s: float = 20.0) -> None:
        self._path = path
        self._deadline_s = deadline_s

    def add(self, name: str, spec: Mapping[str, Any]) -> int:
        return int(self.ask("add", name=name, spec=dict(spec)))

    def remove(self, name: str) -> None:
        self.ask("remove", name=name)

    def ask(self, verb: str, **facts: Any) -> Any:
        """The result of a verb, which must bear repetition: an answer may be lost.

        Raises the PlatformError that the data process raised, StoreUnavailable when none
        has answered within the deadline.
        """
        answer = self._answer({"verb": verb, **facts})
        if "error" in answer:
            kind = _kinds().get(str(answer["error"]), PlatformError)
            raise kind(str(answer.get("detail")))
        return answer.get("result")

    def _answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        give_up_at = time.monotonic() + self._deadline_s
        failures = 0
        while True:
            try:
                return self._exchange(question)
            except OSError as error:
                failures += 1
                delay_s = _BACKOFF.delay_s(failures)
                if time.monotonic() + delay_s >= give_up_at:
                    raise StoreUnavailable(f"{self._path.name} does not answer: {error}") from error
                Event().wait(delay_s)

    def _exchange(self, question: Mapping[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(str(self._path))
            send(connection, question)
            answer = receive(connection)
        if answer is None:
            raise ConnectionError("the data process ended before it answered")
        return answer


def _kinds() -> dict[str, type[PlatformError]]:
    return {kind.slug: kind for kind in _descendants(PlatformError)}


def _descendants(kind: type[PlatformError]) -> Iterator[type[PlatformError]]:
    yield kind
    for heir in kind.__subclasses__():
        yield from _descendants(heir)
