"""`Server-Timing` of one request (W3C Server Timing), in milliseconds."""

from infra.clock import Clock

Header = tuple[bytes, bytes]


class ServerTiming:
    """Prefill lasts from arrival to the first token, decode from there to the last."""

    def __init__(self, clock: Clock, arrived: float) -> None:
        self._clock = clock
        self._arrived = arrived
        self._first = arrived

    def first_token(self) -> Header:
        """The header of a stream, whose decoding is still to come."""
        self._first = self._clock.now()
        return (b"server-timing", self._prefill())

    def last_token(self) -> Header:
        """The header of a whole answer."""
        decode_ms = (self._clock.now() - self._first) * 1000
        return (b"server-timing", b"%b, decode;dur=%.2f" % (self._prefill(), decode_ms))

    def _prefill(self) -> bytes:
        return b"prefill;dur=%.2f" % ((self._first - self._arrived) * 1000)
