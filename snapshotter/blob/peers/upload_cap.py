"""How fast this node gives to others: a rate that all uploads share."""

import time
from threading import Event, Lock


class Rate:
    """Bytes that leave one after the other, whoever sends them."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def delay_s(self, num_bytes: int, *, now: float) -> float:
        """How long to wait before so many bytes are sent; they count as sent."""
        begin = max(self._free_at, now)
        self._free_at = begin + num_bytes / self._bytes_per_s
        return begin - now


class UploadCap:
    """`bytes_per_s` of None is without limit. Any thread may use it."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._rate = None if bytes_per_s is None else Rate(bytes_per_s)
        self._lock = Lock()  # guards the rate and the next
        self.uploaded_bytes = 0
        self._closed = Event()

    def take(self, num_bytes: int) -> None:
        """Waits until so many bytes may be sent."""
        with self._lock:
            self.uploaded_bytes += num_bytes
            if self._rate is None:
                return
            delay_s = self._rate.delay_s(num_bytes, now=time.monotonic())
        self._closed.wait(delay_s)

    def close(self) -> None:
        """Nobody waits any more."""
        self._closed.set()
