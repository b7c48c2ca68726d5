"""One request between its admission and its end; whatever happens to it comes in here."""

from dataclasses import dataclass
from typing import Final, Protocol

from control_plane.activator.call import Call, Downstream, Header
from control_plane.activator.cold_start import Try
from control_plane.activator.company import Company
from control_plane.activator.flights import Flights
from control_plane.activator.lines import Lines
from control_plane.activator.meters import ActivatorMeters
from control_plane.activator.replica_client import ReplicaGone, ReplicaUnreachable, Sending
from control_plane.activator.ticket import IN_FLIGHT, Ticket
from control_plane.fleet.state import Fleet
from infra.contracts.revision import Revision
from infra.errors import ExecutionTimeout, PlatformError, ReplicaLost, ShuttingDown

MOST_TRIES: Final = 3  # at replicas that saw the request: it may be what breaks them
# A replica that cannot be reached for so long is not one of a machine that died: its lease is over.
MOST_UNREACHABLE_S: Final = 15.0


class Relaying(Protocol):
    """Carries requests to replicas and their answers back."""

    def begin(self, exchange: "Exchange", revision: Revision, timeout_s: float) -> Sending:
        """One try, at the replica of the exchange's permit; it ends in one of the exchange's
        `answered`, `failed` or `lost`, unless it is aborted."""
        ...


@dataclass(frozen=True)
class Surroundings:
    """What exchanges work with."""

    lines: Lines
    fleet: Fleet
    flights: Flights
    relay: Relaying
    meters: ActivatorMeters


class Exchange:
    """Held, at a replica, maybe held again, answered or failed; ends once."""

    __slots__ = (
        "_around",
        "_company",
        "_is_over",
        "_is_paused",
        "_limit_s",
        "_sending",
        "_times_seen",
        "call",
        "client",
        "ticket",
        "tries",
    )

    def __init__(
        self, around: Surroundings, call: Call, client: Downstream, ticket: Ticket
    ) -> None:
        self.call: Final = call
        self.client: Final = client
        self.ticket: Final = ticket
        self.tries: tuple[Try, ...] = ()
        self._around: Final = around
        self._company: Company | None = None
        self._sending: Sending | None = None
        self._limit_s = 0.0
        self._times_seen = 0
        self._is_paused = False
        self._is_over = False

    def begin(self, revision: Revision) -> None:
        """Admits it; raises QueueFull."""
        self.ticket.holder = self
        try:
            self._around.lines.enter(self.ticket, revision)
            if self.ticket.place is IN_FLIGHT:
                self._send(revision)
            else:
                self._wait()
        except BaseException:
            self._end()
            raise

    def identity(self) -> list[Header]:
        """The headers that every answer to it carries."""
        headers = [
            (b"firstlight-request-id", self.call.request_id.encode("ascii")),
            (b"firstlight-revision", self.ticket.revision.encode("ascii")),
        ]
        if self.ticket.was_cold:
            headers.append((b"firstlight-cold-start", b"true"))
        return headers

    # -- its client ----------------------------------------------------------------------------

    def leave(self) -> None:
        """The client is gone: the request ends everywhere at once. May be repeated."""
        if not self._is_over:
            self._end()

    def pause(self) -> None:
        """The client takes nothing more for now."""
        self._is_paused = True
        if self._sending is not None:
            self._sending.pause()

    def resume(self) -> None:
        """The client takes more."""
        self._is_paused = False
        if self._sending is not None:
            self._sending.resume()

    # -- the line ------------------------------------------------------------------------------

    def granted(self) -> None:
        """See Holder."""
        if self._is_over:
            return
        self._stop_waiting()
        try:
            self._send(self._around.lines.revision_of(self.ticket))
        except Exception as error:  # nobody else would end it
            self.failed(error)

    def sent_away(self, error: PlatformError) -> None:
        """See Holder."""
        if not self._is_over:
            self.failed(error)

    def _wait(self) -> None:
        """A stream is kept company while it is held."""
        if not self.call.is_streaming:
            return
        around, ticket = self._around, self.ticket
        self._company = Company(
            self.client,
            bulletin=lambda: around.lines.bulletin(ticket),
            climb=lambda: around.fleet.climb(ticket.revision),
            identity=self.identity,
        )
        self._company.begin(at_once=self.call.wants_progress)

    def _stop_waiting(self) -> None:
        if self._company is not None:
            self._company.end()
            self._company = None

    # -- the replica ---------------------------------------------------------------------------

    def answered(self, rest: bytes = b"") -> None:
        """The whole answer is there; `rest` of it was not sent yet."""
        self._is_over = True
        self._sending = None
        self._around.flights.end(self)
        self._around.lines.leave(self.ticket)
        self.ticket.holder = None
        self.client.finish(rest)

    def failed(self, error: Exception) -> None:
        """There is no answer, or no more of it, and no use in trying again."""
        self._end()
        self.client.fail(error)

    def lost(self, gone: ReplicaGone, tried: Try) -> None:
        """The replica failed before the client saw anything: another one may answer."""
        around = self._around
        self.tries = (*self.tries, tried)
        self._abort()
        if around.flights.is_closing:
            self.failed(shutting_down())
        elif self._has_tried_enough(gone, tried):
            self.failed(_lost_often(len(self.tries), gone, tried))
        else:
            self._try_again()

    def _has_tried_enough(self, gone: ReplicaGone, last: Try) -> bool:
        if not isinstance(gone, ReplicaUnreachable):
            self._times_seen += 1
            return self._times_seen >= MOST_TRIES
        replica_id = last.endpoint.replica_id
        failed_at = [it.ended_at for it in self.tries if it.endpoint.replica_id == replica_id]
        return last.ended_at - failed_at[0] >= MOST_UNREACHABLE_S

    def _try_again(self) -> None:
        around, ticket = self._around, self.ticket
        around.meters.retries.add(around.lines.revision_of(ticket).model)
        try:
            around.lines.again(ticket)
        except PlatformError as error:
            self.failed(error)
            return
        self._wait()

    def expire(self) -> None:
        """It was at replicas for as long as it may be."""
        if self._around.flights.is_closing:
            self.failed(shutting_down())
            return
        self.failed(
            ExecutionTimeout(
                f"the replica did not finish within {self._limit_s:g} s",
                hint="lower max_tokens, or raise timeouts.execution, or your Firstlight-Timeout",
                limit_s=self._limit_s,
            )
        )

    def _send(self, revision: Revision) -> None:
        around = self._around
        if around.flights.is_closing:
            self.failed(shutting_down())
            return
        self._limit_s = min(revision.spec.timeouts.execution, self.call.patience.execution_s)
        left_s = self._limit_s
        if self.tries:
            left_s -= sum(one.ended_at - one.dispatched_at for one in self.tries)
        around.flights.begin(self, until=self.ticket.permitted_at + left_s)
        self._sending = around.relay.begin(self, revision, left_s)
        if self._is_paused:
            self._sending.pause()

    def _end(self) -> None:
        """Gives up its place, its permit and its replica."""
        self._is_over = True
        self._stop_waiting()
        self._abort()
        self._around.lines.leave(self.ticket)
        self.ticket.holder = None

    def _abort(self) -> None:
        """Gives up its replica, if it is at one."""
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.abort()
        self._around.flights.end(self)


def shutting_down() -> ShuttingDown:
    """Why nothing new is taken."""
    return ShuttingDown("the platform is stopping", hint="try again soon", retry_after_s=5)


def _lost_often(tries: int, gone: ReplicaGone, last: Try) -> ReplicaLost:
    error = ReplicaLost(
        f"{tries} tries failed before the first byte, the last one because {gone}",
        hint="send the request again",
        replica_id=last.endpoint.replica_id,
    )
    error.__cause__ = gone
    return error
