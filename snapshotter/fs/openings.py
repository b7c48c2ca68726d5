"""Files that were served before and are on their way to be served again."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Any, Final

import structlog

from infra.backoff import Backoff
from infra.errors import Invalid, PlatformError, SourceUnavailable
from snapshotter.fs.ports import OpenFile, ServedFile
from snapshotter.fs.served_files import ServedFiles

log = structlog.get_logger()

_BACKOFF: Final = Backoff(first_s=0.1, most_s=5.0)
_MOST_AT_ONCE: Final = 64


class Openings:
    """Opens each file once at a time; `files` awaits it meanwhile.

    What an origin that is away keeps from being opened is awaited on, so that the next reader
    tries anew; what cannot be opened for any other reason is gone to its readers, until somebody
    adds it.
    """

    def __init__(self, open_file: OpenFile, files: ServedFiles, *, retry_s: float) -> None:
        """`retry_s`: how long an opening is tried again while its origin is away."""
        self._open_file = open_file
        self._files = files
        self._retry_s = retry_s
        self._on_settled: Callable[[], None] = lambda: None
        self._pool = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="opening")
        self._lock = Lock()  # guards the next two
        self._specs: dict[str, Mapping[str, Any]] = {}
        self._under_way: dict[str, Future[None]] = {}

    def subscribe(self, on_settled: Callable[[], None]) -> None:
        """Hears of the end of each opening, well or not, from now on."""
        self._on_settled = on_settled

    def begin(self, name: str, spec: Mapping[str, Any]) -> Future[None]:
        """Done when it was opened, or could not be, which is logged."""
        self._files.await_file(name)
        with self._lock:
            self._specs[name] = spec
            return self._begun(name, spec)

    def again(self, name: str) -> None:
        """For a reader of a file that is awaited: opens it unless that is under way."""
        with self._lock:
            if (spec := self._specs.get(name)) is not None:
                self._begun(name, spec)

    def is_under_way(self, name: str) -> bool:
        with self._lock:
            return name in self._under_way

    def settle(self, name: str) -> None:
        """Returns when the file is not being opened, and will not be again."""
        with self._lock:
            self._specs.pop(name, None)
            opening = self._under_way.get(name)
        if opening is not None:
            opening.result()

    def _begun(self, name: str, spec: Mapping[str, Any]) -> Future[None]:
        if name not in self._under_way:
            self._under_way[name] = self._pool.submit(self._open, name, spec)
        return self._under_way[name]

    def _open(self, name: str, spec: Mapping[str, Any]) -> None:
        try:
            if self._files.find(name) is None:  # else whoever asks saw it missing a moment ago
                self._files.add(self._opened(name, spec))
        except PlatformError as error:
            log.error("file.not_restored", file=name, error=error.detail)
            if isinstance(error, Invalid):
                self._files.give_up(name)
        except Exception:
            log.exception("file.not_restored", file=name)
            self._files.give_up(name)
        finally:
            with self._lock:
                del self._under_way[name]
            self._on_settled()

    def _opened(self, name: str, spec: Mapping[str, Any]) -> ServedFile:
        give_up_at, failures = time.monotonic() + self._retry_s, 0
        while True:
            try:
                return self._open_file(name, spec)
            except SourceUnavailable:
                failures += 1
                delay_s = _BACKOFF.delay_s(failures)
                if time.monotonic() + delay_s >= give_up_at:
                    raise
                Event().wait(delay_s)
