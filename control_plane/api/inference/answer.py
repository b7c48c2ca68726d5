"""Answers to completions as the open inference protocol has them: Downstreams before a client's."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import orjson

from control_plane.activator.answers import problem_of
from control_plane.activator.call import Downstream, Header
from control_plane.api import problems
from control_plane.api.inference.tensors import packed
from infra.contracts.generation import JsonObject
from infra.contracts.revision import Revision
from infra.errors import ReplicaLost

_OK: Final = 200
_OF_CONTENT: Final = frozenset({b"content-type", b"content-length"})
_BLANK_LINE: Final = b"\n\n"
_DATA: Final = b"data: "
_DONE: Final = b"data: [DONE]"


class Compose(Protocol):
    """What becomes of a completion."""

    def __call__(self, completion: JsonObject) -> tuple[bytes, list[Header]]:
        """The body, and the headers that tell what it is; raises LookupError, TypeError or
        ValueError for what is no completion."""
        ...


class Answers:
    """A Downstream that waits for a whole completion and hands on what is composed of it.

    Until then the client has seen nothing, so whatever fails is told with a status.
    """

    def __init__(self, client: Downstream, compose: Compose) -> None:
        self._client = client
        self._compose = compose
        self._status = 0
        self._headers: list[Header] = []
        self._parts: list[bytes] = []

    @property
    def has_started(self) -> bool:
        """See Downstream."""
        return self._client.has_started

    def start(self, status: int, headers: Sequence[Header]) -> None:
        """See Downstream."""
        self._status = status
        self._headers = [header for header in headers if header[0] not in _OF_CONTENT]

    def send(self, data: bytes) -> None:
        """See Downstream."""
        self._parts.append(data)

    def finish(self, data: bytes = b"") -> None:
        """See Downstream."""
        body = b"".join((*self._parts, data))
        if self._status != _OK:
            refusal = problem_of(self._status, body)
            self._hand_on(problems.in_words(refusal), [(b"content-type", b"application/json")])
            return
        try:
            answer, headers = self._compose(orjson.loads(body))
        except (LookupError, TypeError, ValueError):
            self._client.fail(ReplicaLost("the replica's answer is no completion"))
            return
        self._hand_on(answer, headers)

    def fail(self, error: Exception) -> None:
        """See Downstream."""
        self._client.fail(error)

    def _hand_on(self, body: bytes, headers: list[Header]) -> None:
        length = (b"content-length", b"%d" % len(body))
        self._client.start(self._status, [*headers, length, *self._headers])
        self._client.finish(body)


class GeneratedEvents(Answers):
    """A Downstream whose events are handed on one by one; a refusal before the first is whole."""

    def start(self, status: int, headers: Sequence[Header]) -> None:
        """See Downstream."""
        super().start(status, headers)
        if status == _OK:
            self._client.start(status, headers)

    def send(self, data: bytes) -> None:
        """See Downstream."""
        if self._status != _OK:
            super().send(data)
        elif events := self._translated(data):
            self._client.send(events)

    def finish(self, data: bytes = b"") -> None:
        """See Downstream."""
        if self._status != _OK:
            super().finish(data)
        else:
            self._client.finish(self._translated(data))

    def _translated(self, data: bytes) -> bytes:
        """Some events, each whole; comments and what is no completion pass as they are."""
        return b"".join(map(self._event, data.split(_BLANK_LINE)))

    def _event(self, event: bytes) -> bytes:
        if not event or event == _DONE:
            return b""
        name, data, content = event.partition(_DATA)
        if not data:
            return event + _BLANK_LINE
        try:
            told = orjson.loads(content)
            if isinstance(told.get("error"), dict):
                told["error"] = told["error"]["message"]
                return name + data + orjson.dumps(told) + _BLANK_LINE
            answer, _ = self._compose(told)
        except (AttributeError, LookupError, TypeError, ValueError):
            return event + _BLANK_LINE
        return data + answer + _BLANK_LINE


class Inferred:
    """Composes the tensors of an inference response."""

    def __init__(
        self,
        revision: Revision,
        request_id: str | None,
        shape: list[int],
        outputs: Mapping[str, bool],
    ) -> None:
        """Each of the `outputs` is of the prompts' shape; of those that are true the elements stand
        behind the JSON."""
        self._envelope = _envelope(revision, request_id)
        self._shape = shape
        self._outputs = outputs

    def __call__(self, completion: JsonObject) -> tuple[bytes, list[Header]]:
        """See Compose."""
        choices = sorted(completion["choices"], key=lambda choice: int(choice["index"]))
        behind: list[bytes] = []
        tensors = []
        for name, is_binary in self._outputs.items():
            member = "finish_reason" if name == "finish_reason" else "text"
            elements: list[str] = [choice[member] or "" for choice in choices]
            tensor: dict[str, Any] = {"name": name, "shape": self._shape, "datatype": "BYTES"}
            if is_binary:
                behind.append(packed(elements))
                tensor["parameters"] = {"binary_data_size": len(behind[-1])}
            else:
                tensor["data"] = elements
            tensors.append(tensor)
        written = orjson.dumps({**self._envelope, "outputs": tensors})
        if not behind:
            return written, [(b"content-type", b"application/json")]
        return b"".join((written, *behind)), [
            (b"content-type", b"application/octet-stream"),
            (b"inference-header-content-length", b"%d" % len(written)),
        ]


class Generated:
    """Composes the answer to a generate request, or one event of it."""

    def __init__(self, revision: Revision, request_id: str | None) -> None:
        self._envelope = _envelope(revision, request_id)

    def __call__(self, completion: JsonObject) -> tuple[bytes, list[Header]]:
        """See Compose."""
        [choice] = completion["choices"]
        answer = {**self._envelope, "text_output": choice["text"]}
        if (reason := choice["finish_reason"]) is not None:
            answer["finish_reason"] = reason
        return orjson.dumps(answer), [(b"content-type", b"application/json")]


def _envelope(revision: Revision, request_id: str | None) -> dict[str, Any]:
    envelope = {"model_name": revision.model, "model_version": str(revision.number)}
    return envelope if request_id is None else {**envelope, "id": request_id}
