"""What the stage `provision` consists of: a pure cut of the wait for a machine, part by part."""

from dataclasses import dataclass

from control_plane.fleet.node import Node
from infra.contracts.stage import StagePart


@dataclass(frozen=True, slots=True)
class Provision:
    """When each step of a machine towards its node was made, in unix seconds of our clock.

    `answered_at`: whoever rents it out had it on its way; None: not known, or nobody was asked.
    """

    answered_at: float | None
    booted_at: float  # its kernel began
    started_at: float  # its agent began
    registered_at: float

    @classmethod
    def of(cls, node: Node, *, answered_at: float | None = None) -> "Provision":
        """Of a node's machine; the cloud's own record, to a second, where we were not told."""
        answered_at = node.asked_at if answered_at is None else answered_at
        return cls(answered_at, node.booted_at, node.started_at, node.registered_at)

    def parts(self, began_at: float, ended_at: float) -> tuple[StagePart, ...]:
        """The wait from one instant to another, cut at the steps: they add up to it exactly.

        `api`: until the cloud has said yes; `machine`: until its kernel runs; `boot`: until the
        agent does; `agent`: until it has registered; `assignment`: until the node takes the
        replica up. Nothing where the node was there before: there was no wait for a machine.
        """
        if self.registered_at <= began_at:
            return ()
        steps = (
            ("api", self.answered_at),
            ("machine", self.booted_at),
            ("boot", self.started_at),
            ("agent", self.registered_at),
            ("assignment", ended_at),
        )
        told, reached = [], began_at
        for name, at in steps:
            if at is None:
                continue
            at = min(max(at, reached), ended_at)
            if at > reached:
                told.append(StagePart(name=name, seconds=at - reached))
            reached = at
        return tuple(told)
