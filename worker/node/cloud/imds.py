"""The metadata of an EC2 instance, over version 2 of its service (PUT a token, then GET)."""

import json
from datetime import datetime
from typing import Any

from worker.node.cloud.port import Instance, MetadataUnavailable, Notice, Target
from worker.node.http import Answer, HttpConnection

ANSWER_S = 1.0  # it is a process of the hypervisor; who takes longer is not there
TOKEN_TTL_S = 21_600  # the longest there is; who restarts asks for another one
LARGEST_BYTES = 64 << 10
_HEADER = "X-aws-ec2-metadata-token"
_TARGETS = {"InService": Target.SERVE, "Terminated": Target.LEAVE, "Detached": Target.LEAVE}


class InstanceMetadata:
    """Adapter of UserGuide/instancedata-data-retrieval; see the port for the guarantees."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._reader: HttpConnection | None = None

    async def instance(self) -> Instance:
        """UserGuide/instance-identity-documents; `pendingTime`: launched or started then."""
        document = _parsed(await self._get("dynamic/instance-identity/document"))
        return Instance(
            instance_id=_text(document, "instanceId"),
            region=_text(document, "region"),
            asked_at=_unix(document.get("pendingTime")),
        )

    async def target(self) -> Target | None:
        """userguide/retrieving-target-lifecycle-state-through-imds; a state that we do not know is
        one in which it serves nobody."""
        state = await self._get("meta-data/autoscaling/target-lifecycle-state")
        if not state:
            return None
        if state.startswith("Warmed:") and state != "Warmed:Terminated":
            return Target.WARM
        return _TARGETS.get(state, Target.LEAVE)

    async def notice(self) -> Notice | None:
        """UserGuide/spot-instance-termination-notices, then UserGuide/rebalance-recommendations."""
        if text := await self._get("meta-data/spot/instance-action"):
            told = _parsed(text)
            action = str(told.get("action"))[:32]
            return Notice(f"spot interruption: {action}", _unix(told.get("time")))
        if await self._get("meta-data/events/recommendations/rebalance"):
            return Notice("spot rebalance recommendation")
        return None

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    async def _get(self, path: str) -> str | None:
        """Its text; None where there is nothing there."""
        try:
            answer = await self._ask(path)
            if answer.status == 401:  # the token has expired
                self.close()
                self._reader = None
                answer = await self._ask(path)
        except OSError as error:
            raise MetadataUnavailable(f"{path}: {str(error) or type(error).__name__}") from error
        if answer.status == 404:
            return None
        if answer.status != 200 or len(answer.body) > LARGEST_BYTES:
            raise MetadataUnavailable(f"{path}: status {answer.status}")
        return answer.body.decode(errors="replace").strip()

    async def _ask(self, path: str) -> Answer:
        if self._reader is None:
            self._reader = HttpConnection(self._url, headers={_HEADER: await self._token()})
        return await self._reader.request("GET", f"/latest/{path}", timeout_s=ANSWER_S)

    async def _token(self) -> str:
        headers = {f"{_HEADER}-ttl-seconds": str(TOKEN_TTL_S)}
        writer = HttpConnection(self._url, headers=headers)
        try:
            answer = await writer.request("PUT", "/latest/api/token", timeout_s=ANSWER_S)
        finally:
            writer.close()
        token = answer.body.decode("ascii", errors="replace").strip()
        if answer.status != 200 or not token.isprintable() or " " in token:
            raise MetadataUnavailable(f"no token: status {answer.status}")
        return token


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        document = json.loads(text or "")
    except (ValueError, RecursionError) as error:
        raise MetadataUnavailable(f"no JSON: {(text or '')[:100]!a}") from error
    if not isinstance(document, dict):
        raise MetadataUnavailable(f"no object: {(text or '')[:100]!a}")
    return document


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise MetadataUnavailable(f"the identity document has no {name}")
    return value


def _unix(time: object) -> float | None:
    """Seconds of an ISO time with its zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(str(time))
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None
