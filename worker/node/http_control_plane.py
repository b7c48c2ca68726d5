"""The control plane over HTTP: one connection waits for the desired state, one carries reports."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from infra.contracts.base import NodeId
from infra.contracts.node import (
    ClockReading,
    DesiredState,
    NodeLease,
    NodeRegistration,
    NodeReport,
)
from worker.node.control_plane import UnknownNode, Unreachable
from worker.node.http import Answer, HttpConnection

ANSWER_S = 10.0  # for an answer that need not wait for anything

C = TypeVar("C", bound=BaseModel)


class HttpControlPlane:
    """Adapter of the control plane's `/internal/nodes` routes; see the port for the guarantees."""

    def __init__(self, url: str, *, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        self._watch = HttpConnection(url, headers=headers)
        self._reports = HttpConnection(url, headers=headers)

    @property
    def address(self) -> str | None:
        return self._reports.local_address

    async def register(self, registration: NodeRegistration) -> NodeLease:
        body = registration.model_dump_json().encode()
        answer = await _ask(self._reports, "POST", "/internal/nodes", body)
        return _parse(NodeLease, answer)

    async def desired(self, node_id: NodeId, *, after: int, wait_s: float) -> DesiredState:
        target = f"/internal/nodes/{node_id}/desired?after={after}&wait_s={wait_s:g}"
        answer = await _ask(self._watch, "GET", target, timeout_s=wait_s + ANSWER_S)
        return _parse(DesiredState, answer)

    async def report(self, report: NodeReport) -> ClockReading:
        body = report.model_dump_json().encode()
        target = f"/internal/nodes/{report.node_id}/reports"
        return _parse(ClockReading, await _ask(self._reports, "POST", target, body))

    async def close(self) -> None:
        self._watch.close()
        self._reports.close()


async def _ask(
    connection: HttpConnection,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    timeout_s: float = ANSWER_S,
) -> Answer:
    try:
        answer = await connection.request(method, target, body, timeout_s=timeout_s)
    except OSError as error:
        raise Unreachable(f"{method} {target}: {str(error) or type(error).__name__}") from error
    if answer.status == 404:
        raise UnknownNode(target)
    if answer.status >= 300:
        excerpt = answer.body[:300].decode(errors="replace")
        raise Unreachable(f"{method} {target}: status {answer.status}: {excerpt}")
    return answer


def _parse(contract: type[C], answer: Answer) -> C:
    try:
        return contract.model_validate_json(answer.body)
    except ValidationError as error:
        raise Unreachable(f"an answer that is no {contract.__name__}: {error}") from error
