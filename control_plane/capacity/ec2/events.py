"""What EventBridge puts into our queue, as events of the port."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from control_plane.capacity.ec2.calls import Calls
from control_plane.capacity.port import CapacityEvent, Ended, Leaving
from infra.contracts.base import NodeId

log = structlog.get_logger()

# UserGuide/spot-instance-termination-notices: the instance has two minutes from the warning on.
_WARNED_S: Final = 120.0
_GONE: Final = frozenset({"shutting-down", "terminated", "stopping", "stopped"})
_BATCH: Final = 10  # of ReceiveMessage and DeleteMessageBatch


@dataclass(frozen=True, slots=True)
class Heard:
    """One message: the event it tells, if any, and when that was (unix seconds).

    One that tells nothing of its own says that there is something new to see.
    """

    event: CapacityEvent | None
    at: float


def read(body: str) -> Heard | None:
    """Of a message's body; None for what EventBridge does not write.

    UserGuide/spot-instance-termination-notices, rebalance-recommendations,
    monitoring-instance-state-changes: each has `detail.instance-id`.
    """
    try:
        message = json.loads(body)
        at = datetime.fromisoformat(message["time"]).timestamp()
        detail: dict[str, Any] = message["detail"]
        kind: str = message["detail-type"]
        return Heard(_event(kind, detail, at), at)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _event(kind: str, detail: dict[str, Any], at: float) -> CapacityEvent | None:
    match kind:
        case "EC2 Spot Instance Interruption Warning":
            node_id = NodeId(str(detail["instance-id"]))
            return Leaving(node_id, "its spot instance is interrupted", at + _WARNED_S)
        case "EC2 Instance Rebalance Recommendation":
            return Leaving(NodeId(str(detail["instance-id"])), "its spot instance is at risk")
        case "EC2 Instance State-change Notification" if detail["state"] in _GONE:
            node_id = NodeId(str(detail["instance-id"]))
            return Ended(node_id, f"its instance is {detail['state']}")
        case _:
            return None


class EventQueue:
    """Long polls of one SQS queue. A message is deleted when what it tells has been told."""

    def __init__(self, calls: Calls, url: str, *, wait_s: int = 20) -> None:
        self._calls = calls
        self._url = url
        self._wait_s = wait_s

    @property
    def wait_s(self) -> float:
        """How long an empty `receive` should have taken."""
        return float(self._wait_s)

    async def receive(self) -> list[tuple[str, Heard]]:
        """What came, each with the handle by which it is deleted. What cannot be read is deleted
        at once. Raises what `Calls` raises."""
        answer = await self._calls(
            self._calls.clients.sqs.receive_message,
            QueueUrl=self._url,
            MaxNumberOfMessages=_BATCH,
            WaitTimeSeconds=self._wait_s,
        )
        heard: list[tuple[str, Heard]] = []
        unreadable: list[str] = []
        for message in answer.get("Messages", []):
            handle = message["ReceiptHandle"]
            told = read(message["Body"])
            if told is None:
                log.warning("ec2.unreadable-event", bytes=len(message["Body"]))
                unreadable.append(handle)
            else:
                heard.append((handle, told))
        await self.delete(unreadable)
        return heard

    async def delete(self, handles: list[str]) -> None:
        """May be repeated; one that is not deleted comes again."""
        if not handles:
            return
        entries = [{"Id": str(number), "ReceiptHandle": it} for number, it in enumerate(handles)]
        await self._calls(
            self._calls.clients.sqs.delete_message_batch, QueueUrl=self._url, Entries=entries
        )
