"""One request on its way: who asked, where it stands, where it has been."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from control_plane.activator.call import Call, Downstream, Header
from control_plane.activator.cold_start import Try
from control_plane.activator.ticket import Ticket
from infra.contracts.base import RevisionName
from infra.contracts.revision import Revision


@dataclass(eq=False, slots=True)
class Exchange:
    """What is known of a request between its admission and its end.

    `answered` is told when a replica begins to answer; `recording` is the task that stores its
    cold-start report; the answer ends after it.
    """

    call: Call
    client: Downstream
    ticket: Ticket
    answered: Callable[[Ticket], None]
    tries: list[Try] = field(default_factory=list)
    recording: asyncio.Task[None] | None = None

    def executed_s(self) -> float:
        """Seconds it has spent at replicas so far."""
        return sum(attempt.ended_at - attempt.dispatched_at for attempt in self.tries)

    def limit_s(self, revision: Revision) -> float:
        """Seconds it may spend at replicas: what the model allows, or what the client asks."""
        return min(revision.spec.timeouts.execution, self.call.patience.execution_s)

    def identity(self, revision: RevisionName) -> list[Header]:
        """The headers that every answer to it carries."""
        headers = [
            (b"firstlight-request-id", self.call.request_id.encode("ascii")),
            (b"firstlight-revision", revision.encode("ascii")),
        ]
        if self.ticket.was_cold:
            headers.append((b"firstlight-cold-start", b"true"))
        return headers
