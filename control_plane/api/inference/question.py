"""Requests of the open inference protocol as completions, and what their answers will look like."""

from collections.abc import Mapping
from typing import Any, Final

from control_plane.activator.call import Downstream
from control_plane.api.inference.answer import Answers, Generated, GeneratedEvents, Inferred
from control_plane.api.inference.parameters import KNOWN, completion
from control_plane.api.inference.tensors import Behind, elements_of
from control_plane.api.translation import Question
from infra.contracts.inference import (
    GenerateRequest,
    InferenceRequest,
    InputTensor,
    RequestedOutput,
)
from infra.contracts.revision import Revision
from infra.errors import Invalid
from infra.generation_requests import json_object, validated

Headers = Mapping[bytes, bytes]

# The prompts' input, and the output of their texts: the protocol's and Triton's names, then those
# of KServe's Hugging Face runtime.
TEXTS: Final = {"text_input": "text_output", "input-0": "output-0"}
FINISH_REASON: Final = "finish_reason"

_HEADER_LENGTH: Final = b"inference-header-content-length"
_LISTS: Final = frozenset({"stop", "stop_token_ids"})


def infer(model: str, content: bytes, headers: Headers) -> Question:
    """`infer`: tensors in, tensors out; raises Invalid."""
    written, behind = _parts(content, headers)
    request = validated(InferenceRequest, json_object(written))
    texts: InputTensor | None = None
    prompts: list[str] = []
    parameters: dict[str, Any] = {}
    for index, tensor in enumerate(request.inputs):
        elements = elements_of(tensor, behind, f"inputs[{index}]")
        if tensor.name not in TEXTS:
            parameters[_parameter(tensor, index)] = _value(tensor.name, elements)
        elif texts is not None:
            raise Invalid("there are two inputs of text", param=f"inputs[{index}].name")
        elif tensor.datatype != "BYTES":
            raise Invalid(f"{tensor.name} is not BYTES", param=f"inputs[{index}].datatype")
        else:
            texts, prompts = tensor, elements
    behind.check_empty()
    if texts is None:
        raise Invalid("there is no input text_input", param="inputs")
    outputs = _outputs(request, TEXTS[texts.name])
    asked = completion(model, prompts, (request.parameters, parameters), is_stream=False)

    def answer(client: Downstream, revision: Revision) -> Downstream:
        compose = Inferred(revision, request.id, texts.shape, outputs)
        return Answers(client, compose)

    return Question(asked, answer)


def generate(model: str, content: bytes, headers: Headers) -> Question:
    """`generate`: a text in, a text out; raises Invalid."""
    return _generate(model, content, is_stream=False)


def generate_stream(model: str, content: bytes, headers: Headers) -> Question:
    """`generate_stream`: a text in, its events out; raises Invalid."""
    return _generate(model, content, is_stream=True)


def _generate(model: str, content: bytes, *, is_stream: bool) -> Question:
    request = validated(GenerateRequest, json_object(content))
    asked = completion(model, [request.text_input], (request.parameters,), is_stream=is_stream)

    def answer(client: Downstream, revision: Revision) -> Downstream:
        compose = Generated(revision, request.id)
        return GeneratedEvents(client, compose) if is_stream else Answers(client, compose)

    return Question(asked, answer)


def _parts(content: bytes, headers: Headers) -> tuple[bytes, Behind]:
    """The JSON, and the bytes behind it where a header says how long the JSON is."""
    said = headers.get(_HEADER_LENGTH)
    if said is None:
        return content, Behind(memoryview(b""))
    length = int(said) if said.isdigit() and len(said) < 19 else -1
    if not 0 <= length <= len(content):
        raise Invalid(
            "the header Inference-Header-Content-Length is not a length within the body",
            param="Inference-Header-Content-Length",
        )
    return content[:length], Behind(memoryview(content)[length:])


def _parameter(tensor: InputTensor, index: int) -> str:
    if tensor.name not in KNOWN:
        raise Invalid(
            f"no model has an input {tensor.name!r}",
            hint="inputs are text_input and parameters of completions, max_tokens say",
            param=f"inputs[{index}].name",
        )
    return tensor.name


def _value(name: str, elements: list[Any]) -> Any:
    return elements if name in _LISTS or len(elements) > 1 else elements[0]


def _outputs(request: InferenceRequest, text: str) -> dict[str, bool]:
    """Whether each wanted output stands behind the JSON, by name."""
    known = (text, FINISH_REASON)
    by_default = request.parameters.get("binary_data_output") is True
    wanted = request.outputs or [RequestedOutput(name=name) for name in known]
    for index, output in enumerate(wanted):
        if output.name not in known:
            raise Invalid(
                f"no model has an output {output.name!r}",
                hint=f"outputs are {text} and {FINISH_REASON}",
                param=f"outputs[{index}].name",
            )
    return {it.name: it.parameters.get("binary_data", by_default) is True for it in wanted}
