"""Carries a request to the replica it has a permit for, and the answer back to its client."""

from typing import Final

import structlog

from control_plane.activator.answers import Answer, RefusedAnswer, StreamAnswer, WholeAnswer
from control_plane.activator.cold_start import ReplicaTiming, Try
from control_plane.activator.exchange import Exchange
from control_plane.activator.ledger import Ledger
from control_plane.activator.lines import Lines
from control_plane.activator.replica_client import (
    Headers,
    ReplicaClient,
    ReplicaGone,
    ReplicaRequest,
    Sending,
)
from infra.clock import Clock
from infra.contracts.revision import Revision
from infra.errors import ReplicaLost

log = structlog.get_logger()

# The replica does not serve us (any more): draining, or not the one we think it is.
_ELSEWHERE: Final = frozenset({401, 503})
_OK: Final = 200


class Relay:
    """Relays one try at a time of each request; bytes of the body pass untouched."""

    def __init__(self, replicas: ReplicaClient, lines: Lines, ledger: Ledger, clock: Clock) -> None:
        self._replicas = replicas
        self.lines = lines
        self.ledger = ledger
        self.clock = clock

    def begin(self, exchange: Exchange, revision: Revision, timeout_s: float) -> Sending:
        """See Relaying."""
        call = exchange.call
        request = ReplicaRequest(call.request_id, call.path, call.body, call.tenant, timeout_s)
        attempt = _Attempt(self, exchange, revision)
        return self._replicas.send(exchange.ticket.endpoint, request, attempt)


class _Attempt:
    """The Reader of one try: its head says what its body becomes.

    While the client has seen nothing of an answer the request can be tried again; after that a
    break is its end.
    """

    __slots__ = ("_answer", "_dispatched_at", "_endpoint", "_exchange", "_headers", "_relay")

    def __init__(self, relay: Relay, exchange: Exchange, revision: Revision) -> None:
        self._relay = relay
        self._exchange = exchange
        self._endpoint = exchange.ticket.endpoint
        self._dispatched_at = exchange.ticket.permitted_at
        self._headers: Headers = ()
        self._answer: Answer | None = None

    def head(self, status: int, headers: Headers) -> None:
        """See Reader."""
        if status in _ELSEWHERE:
            self._lose(ReplicaGone(f"it answered {status}"))
            return
        exchange = self._exchange
        self._headers = headers
        slot = exchange.ticket.slot
        if slot is not None and slot.failures:
            self._relay.lines.answered(exchange.ticket)
        if exchange.call.is_streaming and status == _OK:
            self._answer = StreamAnswer(exchange, headers, self._account)
        elif exchange.client.has_started:
            self._answer = RefusedAnswer(exchange, status)
        else:
            self._answer = WholeAnswer(exchange, status, headers, self._account)

    def body(self, data: bytes) -> None:
        """See Reader."""
        if self._answer is not None:
            self._answer.body(data)

    def end(self) -> None:
        """See Reader."""
        answer, self._answer = self._answer, None  # they know each other: not a case for the GC
        if answer is not None:
            answer.end()

    def gone(self, why: ReplicaGone) -> None:
        """See Reader."""
        answer, self._answer = self._answer, None
        if answer is not None and answer.is_passed_on:
            self._exchange.failed(self._broken_off(why))
        else:
            self._lose(why)

    def _lose(self, why: ReplicaGone) -> None:
        tried = Try(self._endpoint, self._dispatched_at, self._relay.clock.now())
        self._exchange.lost(why, tried)

    def _broken_off(self, why: ReplicaGone) -> ReplicaLost:
        error = ReplicaLost(
            f"the replica broke off in the middle of its answer: {why}",
            hint="send the request again",
            replica_id=self._endpoint.replica_id,
        )
        error.__cause__ = why
        return error

    def _account(self) -> bytes:
        """Notes when a cold request's first token came; its `Server-Timing`.

        For an answer that does not stream the first byte comes with the last token, and the
        replica says how long it decoded.
        """
        exchange = self._exchange
        theirs = ReplicaTiming.read(dict(self._headers).get(b"server-timing", b""))
        at = self._relay.clock.now()
        if not exchange.call.is_streaming:
            at = max(self._dispatched_at, at - theirs.decode)
        tried = Try(self._endpoint, self._dispatched_at, at, theirs.parts())
        exchange.tries = (*exchange.tries, tried)
        revision = self._relay.lines.revision_of(exchange.ticket)
        return self._relay.ledger.enter(exchange, revision)
