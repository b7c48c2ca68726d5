"""The open inference protocol v2 (KServe) as the API speaks it: text tensors in, text tensors out.

Source: kserve/open-inference-protocol, `inference_rest.md` and `generate_rest.yaml`, with the
binary tensor data extension of triton-inference-server/server, `extension_binary_data.md`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from infra.contracts.sampling import MAX_CHOICES, Wire

MAX_DIMENSIONS = 8
MAX_TENSORS = 64

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Shape = Annotated[
    list[Annotated[int, Field(ge=0, le=1 << 24)]], Field(min_length=1, max_length=MAX_DIMENSIONS)
]
Parameters = Annotated[dict[str, Any], Field(max_length=256)]


class InputTensor(Wire):
    """An input: its elements are in `data`, flat or nested, or behind the JSON as
    `parameters.binary_data_size` bytes."""

    name: Name
    shape: Shape
    datatype: Datatype
    parameters: Parameters = Field(default={})
    data: list[Any] | None = None


class RequestedOutput(Wire):
    """An output that is wanted; `parameters.binary_data` asks for it behind the JSON."""

    name: Name
    parameters: Parameters = Field(default={})


class InferenceRequest(Wire):
    """`POST /v2/models/{name}/infer`."""

    id: str | None = Field(default=None, max_length=256, description="Comes back in the answer.")
    parameters: Parameters = Field(
        default={}, description="How to answer: what completions take, `temperature` say."
    )
    inputs: list[InputTensor] = Field(
        min_length=1,
        max_length=MAX_TENSORS,
        description=f"`text_input`, BYTES, of up to {MAX_CHOICES} prompts.",
    )
    outputs: list[RequestedOutput] | None = Field(
        default=None,
        max_length=MAX_TENSORS,
        description="`text_output` and `finish_reason`; else both.",
    )


class OutputTensor(BaseModel):
    """An output; `data` is flat."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, Any] | None = None
    data: list[str] | None = None


class InferenceResponse(BaseModel):
    """The answer to an InferenceRequest; `model_version` is the revision's number."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class GenerateRequest(Wire):
    """`POST /v2/models/{name}/generate`, or `generate_stream`."""

    id: str | None = Field(default=None, max_length=256, description="Comes back in the answer.")
    text_input: str = Field(description="Text to continue.")
    parameters: Parameters = Field(
        default={}, description="How to answer: what completions take, `temperature` say."
    )


class GenerateResponse(BaseModel):
    """The answer to a GenerateRequest, or an event of it."""

    id: str | None = None
    model_name: str
    model_version: str
    text_output: str
    finish_reason: str | None = None


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 is any size."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    """`GET /v2/models/{name}`; versions are the numbers of the revisions in traffic, the one that
    most requests go to first."""

    name: str
    versions: list[str]
    platform: Literal["firstlight"] = "firstlight"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """`GET /v2`."""

    name: Literal["firstlight"] = "firstlight"
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """`GET /v2/health/live`."""

    live: Literal[True] = True


class ServerReady(BaseModel):
    """`GET /v2/health/ready`."""

    ready: Literal[True] = True


class ModelReady(BaseModel):
    """`GET /v2/models/{name}/ready`."""

    name: str
    ready: Literal[True] = True
