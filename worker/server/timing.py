"""`Server-Timing` of one request (W3C Server Timing), in milliseconds."""

from infra.clock import Clock

Header = tuple[bytes, bytes]


class ServerTiming:
    """Prefill lasts from arrival to the first token or the vectors, decode from there to the last.

    The first part of prefill is tokenising the prompt.
    """

    def __init__(self, clock: Clock, arrived: float) -> None:
        self._clock = clock
        self._arrived = arrived
        self._first = arrived
        self._tokenised = arrived

    def tokenised(self) -> None:
        """The prompt is token ids now."""
        self._tokenised = self._clock.now()

    def first_token(self) -> Header:
        """The header of a stream, whose decoding is still to come."""
        self._first = self._clock.now()
        return (b"server-timing", self._prefill())

    def last_token(self) -> Header:
        """The header of a whole answer."""
        decode_ms = (self._clock.now() - self._first) * 1000
        return (b"server-timing", b"%b, decode;dur=%.2f" % (self._prefill(), decode_ms))

    def _prefill(self) -> bytes:
        prefill_ms = (self._first - self._arrived) * 1000
        tokenise_ms = (self._tokenised - self._arrived) * 1000
        return b"prefill;dur=%.2f, tokenise;dur=%.2f" % (prefill_ms, tokenise_ms)
