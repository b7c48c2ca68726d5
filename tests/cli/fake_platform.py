"""A platform that answers what a test says, and remembers what it was asked."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx

from infra.contracts.image import ImageStatus
from infra.contracts.model_spec import ModelSpec
from infra.contracts.release import TrafficShare
from infra.contracts.revision import (
    ModelFacts,
    ModelState,
    ModelStatus,
    ReplicaState,
    ReplicaStatus,
)
from infra.contracts.stage import ColdStartReport, Rung, Stage, StageProgress, StageShare
from infra.errors import PlatformError

URL = "http://platform.test"
REQUEST_ID = "req_0123456789abcdef01234567"

Answer = httpx.Response | Callable[[httpx.Request], httpx.Response]


class FakePlatform:
    """Answers by method and path; several answers to one address are given in turn."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self._answers: dict[str, list[Answer]] = {}

    def answer(self, address: str, *answers: Answer) -> None:
        """From now on `address`, as in "GET /v1/models", gets these; the last one for ever."""
        self._answers[address] = list(answers)

    def asked(self, number: int = -1) -> Any:
        """The JSON body of a request."""
        return json.loads(self.requests[number].content)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answers = self._answers.get(f"{request.method} {request.url.path}")
        if not answers:
            return httpx.Response(404, json={"detail": "no such route in this test"})
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(request) if callable(answer) else answer


def as_json(value: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=value)


def problem(error: PlatformError) -> httpx.Response:
    return httpx.Response(
        error.status.value,
        content=error.problem("/v1").model_dump_json(),
        headers={"Content-Type": "application/problem+json"},
    )


def model(
    name: str = "chat",
    *,
    state: ModelState = ModelState.IDLE,
    reason: str = "nobody calls",
    hint: str | None = None,
    progress: StageProgress | None = None,
    minimum: int = 0,
    number: int = 1,
    traffic: dict[int, int] | None = None,
    image: ImageStatus | None = None,
) -> ModelStatus:
    """A deployed model; one that is not idle has a replica."""
    replica = ReplicaStatus(
        replica_id="chat-1-a",
        node_id="local",
        revision=f"{name}@1",
        state=ReplicaState.READY if state is ModelState.READY else ReplicaState.STARTING,
        since=1_700_000_000,
        progress=progress,
    )
    return ModelStatus(
        name=name,
        state=state,
        revision=f"{name}@{number}",
        spec=ModelSpec.model_validate(
            {"name": name, "source": "file:///models/chat", "scaling": {"min": minimum}}
        ),
        facts=ModelFacts(
            architecture="LlamaForCausalLM",
            context_tokens=8192,
            vocabulary=49152,
            weight_bytes=269_060_544,
            longest_token_bytes=81,
        ),
        digest="sha256:0",
        image=image,
        url=f"{URL}/v1/models/{name}/invoke",
        created_at=1_700_000_000,
        desired_replicas=0 if state is ModelState.IDLE else 1,
        reason=reason,
        hint=hint,
        in_flight=0,
        waiting=0,
        traffic=tuple(
            TrafficShare(revision=f"{name}@{it}", percent=percent)
            for it, percent in (traffic or {number: 100}).items()
        ),
        replicas=() if state is ModelState.IDLE else (replica,),
    )


def model_json(status: ModelStatus, code: int = 200) -> httpx.Response:
    return httpx.Response(code, content=status.model_dump_json())


def listed(*models: ModelStatus) -> httpx.Response:
    data = [
        {"id": it.name, "object": "model", "status": it.model_dump(mode="json")} for it in models
    ]
    return as_json({"object": "list", "data": data})


Part = tuple[Stage, float, int | None, str | None]
PARKED: tuple[Part, ...] = (
    (Stage.QUEUE, 0.0004, None, "activator"),
    (Stage.PROVISION, 0.0031, None, None),
    (Stage.RUNTIME, 0.0120, None, "parked"),
    (Stage.WEIGHTS, 0.0079, 269_060_544, "mmap"),
    (Stage.ENGINE, 0.0347, None, None),
    (Stage.QUEUE, 0.0008, None, "activator"),
    (Stage.PREFILL, 0.1122, None, None),
)


def report(
    parts: Iterable[Part] = PARKED,
    *,
    rung: Rung = Rung.RUNTIME,
    started_at: float = 1_700_000_000,
    unattributed_s: float = 0.0003,
    request_id: str = REQUEST_ID,
) -> ColdStartReport:
    """A cold start whose stages follow each other without a gap."""
    shares, offset_s = [], 0.0
    for stage, seconds, size, source in parts:
        shares.append(
            StageShare(stage=stage, offset_s=offset_s, seconds=seconds, bytes=size, source=source)
        )
        offset_s += seconds
    return ColdStartReport(
        request_id=request_id,
        model="chat",
        revision="chat@1",
        replica_id="chat-1-a",
        node_id="local",
        from_rung=rung,
        started_at=started_at,
        ttft_s=offset_s + unattributed_s,
        shares=tuple(shares),
        unattributed_s=unattributed_s,
        clock_uncertainty_s=0,
    )


def reports(*found: ColdStartReport) -> httpx.Response:
    return as_json({"object": "list", "data": [it.model_dump(mode="json") for it in found]})


def sse(*parts: str, headers: dict[str, str] | None = None) -> Answer:
    """A stream of these lines of text, each part an event or a comment of its own."""
    return lambda request: httpx.Response(
        200,
        headers={"Firstlight-Request-Id": REQUEST_ID} | (headers or {}),
        content=_pieces(parts),
    )


def _pieces(parts: tuple[str, ...]) -> Iterator[bytes]:
    for part in parts:
        yield f"{part}\n\n".encode()


def delta(text: str) -> str:
    return "data: " + json.dumps({"index": 0, "delta": text, "finish_reason": None})


def closing(tokens: int = 3) -> str:
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
    return "data: " + json.dumps({"index": 0, "delta": "", "usage": usage})
