"""How fast this node gives to others: a rate that all uploads share."""

import time
from threading import Event, Lock


class UploadCap:
    """`bytes_per_s` of None is without limit. Any thread may use it."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = Lock()  # guards the two below
        self._free_at = 0.0
        self.uploaded_bytes = 0
        self._closed = Event()

    def take(self, num_bytes: int) -> None:
        """Waits until so many bytes may be sent."""
        with self._lock:
            self.uploaded_bytes += num_bytes
            if self._bytes_per_s is None:
                return
            now = time.monotonic()
            begin = max(self._free_at, now)
            self._free_at = begin + num_bytes / self._bytes_per_s
        self._closed.wait(begin - now)

    def close(self) -> None:
        """Nobody waits any more."""
        self._closed.set()
