"""Reads a request to a model from a body, or says everything that is wrong with it."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import SchemaValidator, core_schema

from infra.contracts.embeddings import EmbeddingsRequest
from infra.contracts.generation import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationBody,
    InvokeRequest,
    JsonObject,
)
from infra.contracts.sampling import (
    MAX_GUIDE_CHARACTERS,
    MAX_GUIDE_DEPTH,
    ResponseFormat,
    StructuredOutputs,
    guides_of,
)
from infra.errors import Invalid, MalformedJson

MOST_ERRORS: Final = 100
MOST_CHOICES: Final = 128
_LARGE_BYTES: Final = 64 << 10
_MOST_MEMBERS: Final = 256  # each one unknown is a problem to describe

ModelBody = GenerationBody | EmbeddingsRequest

Given = dict[str, Any]  # fields of a request by name, those that were sent, each of its type
Body = TypeVar("Body", bound=ModelBody)
Model = TypeVar("Model", bound=BaseModel)

# Values that ask for nothing: clients send them as defaults.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),  # more of them means more choices than are returned
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, [], ["text"]),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}

_UNSUPPORTED = frozenset(_NEUTRAL)


def read_given(contract: type[ModelBody], body: bytes) -> Given:
    """What a body asks, checked as the contract has it; raises MalformedJson or Invalid.

    While a large body is read, the garbage collector rests: a hostile one of a million empty lists
    would have it walk through all of them, and JSON makes no cycles.
    """
    if len(body) < _LARGE_BYTES or not gc.isenabled():
        return _given(contract, json_object(body))
    gc.disable()
    try:
        return _given(contract, json_object(body))
    except Invalid as error:
        error.__context__ = None  # its frames hold the data
        raise error.with_traceback(None) from None
    finally:
        gc.enable()


def read_object(contract: type[Body], data: JsonObject) -> Body:
    """The request in a JSON object; raises Invalid."""
    if contract is not InvokeRequest:
        refuse_unsupported(data)
    request = validated(contract, data)
    refuse_contradictions(contract, vars(request))
    return request


def _given(contract: type[ModelBody], data: JsonObject) -> Given:
    if contract is not InvokeRequest:
        refuse_unsupported(data)
    checked: Given = _checked(_OF_GIVEN[contract], data)
    refuse_contradictions(contract, checked)
    return checked


def _validator_of_given(contract: type[ModelBody]) -> SchemaValidator:
    """The contract's own checks, as those of a dictionary.

    A model's visit all fields that there are and fill in what was left out: for most requests that
    is half of what it costs to check them.
    """
    model: Any = contract.__pydantic_core_schema__
    fields = {}
    for name, field in model["schema"]["fields"].items():
        schema = field["schema"]
        is_required = schema["type"] != "default"
        of_given = schema if is_required else schema["schema"]
        fields[name] = core_schema.typed_dict_field(of_given, required=is_required)
    config = model["config"]
    extras = config["extra_fields_behavior"]
    return SchemaValidator(
        core_schema.typed_dict_schema(fields, extra_behavior=extras, config=config)
    )


_OF_GIVEN: Final[dict[type[ModelBody], SchemaValidator]] = {
    contract: _validator_of_given(contract)
    for contract in (ChatCompletionRequest, CompletionRequest, InvokeRequest, EmbeddingsRequest)
}


def json_object(body: bytes) -> JsonObject:
    """The body as a JSON object; raises MalformedJson or Invalid.

    orjson refuses NaN, invalid UTF-8, lone surrogates and nesting beyond 1,024 levels.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedJson(
            f"the body is not JSON: {error.msg}", line=error.lineno, column=error.colno
        ) from None
    if not isinstance(data, dict):
        raise Invalid("the body is not a JSON object")
    return data


def validated(contract: type[Model], data: Any) -> Model:
    """The contract's value; raises Invalid that lists everything wrong with the data."""
    return cast(Model, _checked(contract.__pydantic_validator__, data))


def _checked(validator: Any, data: Any) -> Any:
    if isinstance(data, dict) and len(data) > _MOST_MEMBERS:
        raise Invalid(f"the body has {len(data)} members", limit=_MOST_MEMBERS)
    try:
        return validator.validate_python(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise invalid(details, data) from None


def refuse_unsupported(data: JsonObject) -> None:
    """Raises Invalid for parameters of the OpenAI API that would change the answer's meaning and
    that we do not have, rather than answer something else than what was asked."""
    if _UNSUPPORTED.isdisjoint(data):
        return
    for name, neutral in _NEUTRAL.items():
        if data.get(name) not in neutral:
            raise Invalid(f"{name} is not supported", param=name, hint=f"leave {name} out")


def output_limit(given: Given) -> int | None:
    """The larger-named of the two spellings wins, as in the OpenAI API."""
    limit: int | None = given.get("max_completion_tokens") or given.get("max_tokens")
    return limit


def refuse_contradictions(contract: type[BaseModel], given: Given) -> None:
    """Raises Invalid for values that are each fine and do not go together."""
    if contract is EmbeddingsRequest:
        return
    form, outputs = given.get("response_format"), given.get("structured_outputs")
    if form is not None or outputs is not None:
        _refuse_guides(form, outputs)
    least = given.get("min_tokens")
    if least and least > (output_limit(given) or least):
        raise Invalid("min_tokens is more than max_tokens", param="min_tokens")
    if contract is ChatCompletionRequest:
        if given.get("top_logprobs") is not None and not given.get("logprobs"):
            raise Invalid("top_logprobs needs logprobs to be true", param="top_logprobs")
    elif contract is CompletionRequest:
        _refuse_contradictory_completion(given)
    elif (given.get("prompt") is None) == (given.get("messages") is None):
        raise Invalid("give either prompt or messages", param="prompt")


def _refuse_contradictory_completion(given: Given) -> None:
    if given.get("max_tokens") == 0 and not given.get("echo"):
        raise Invalid("max_tokens is 0, which needs echo", param="max_tokens")
    prompts = given["prompt"]
    if isinstance(prompts, list) and not isinstance(prompts[0], int):
        _refuse_too_many_choices(len(prompts), given.get("n") or 1)


def _refuse_guides(form: ResponseFormat | None, outputs: StructuredOutputs | None) -> None:
    """Raises Invalid for more than one guide, or one that is too large to be compiled."""
    if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
        raise Invalid(
            "json_schema belongs to the type json_schema", param="response_format.json_schema"
        )
    if outputs is not None and not outputs.model_dump(exclude_none=True):
        raise Invalid(
            "give one of json, regex, choice, grammar, json_object", param="structured_outputs"
        )
    schemas = [form.json_schema.content] if form is not None and form.json_schema else []
    if outputs is not None and isinstance(outputs.content, dict):
        schemas.append(outputs.content)
    if any(_is_deeper(schema, MAX_GUIDE_DEPTH) for schema in schemas):
        raise Invalid(f"a schema is nested over {MAX_GUIDE_DEPTH} levels", limit=MAX_GUIDE_DEPTH)
    guides = guides_of(form, outputs)
    if len(guides) > 1:
        raise Invalid("the answer can follow one guide only", param="structured_outputs")
    if any(len(text) > MAX_GUIDE_CHARACTERS for _, text in guides):
        raise Invalid(
            f"what guides the answer has over {MAX_GUIDE_CHARACTERS} characters",
            limit=MAX_GUIDE_CHARACTERS,
        )


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether it nests deeper; looks at no more than one level more."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            inner
            for each in layer
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not layer:
            return False
    return True


def _refuse_too_many_choices(prompts: int, n: int) -> None:
    choices = prompts * n
    if choices > MOST_CHOICES:
        raise Invalid(
            f"{prompts} prompts with {n} choices each are {choices} choices; "
            f"a request may have {MOST_CHOICES}",
            param="n",
            limit=MOST_CHOICES,
        )


# -- what is wrong with it -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fault:
    """One value that is wrong; a union says so once a branch."""

    steps: tuple[str | int, ...]
    messages: tuple[str, ...]

    @property
    def pointer(self) -> str:
        """A JSON pointer in URI fragment form (RFC 6901, section 6)."""
        return "#" + "".join(f"/{_escaped(step)}" for step in self.steps)

    @property
    def param(self) -> str:
        """As OpenAI writes it: `messages[3].role`."""
        named = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)
        return "".join(named).removeprefix(".")


def invalid(details: Sequence[Mapping[str, Any]], data: Any) -> Invalid:
    """The error that lists what pydantic found wrong with the data; at least one thing."""
    faults = _faults(details, data)
    first = faults[0]
    more = "" if len(faults) == 1 else f" (and {len(faults) - 1} more problems)"
    return Invalid(
        f"{first.param or 'the body'}: {' or '.join(first.messages)}{more}",
        param=first.param or None,
        errors=[
            {"pointer": fault.pointer, "message": " or ".join(fault.messages)}
            for fault in faults[:MOST_ERRORS]
        ],
    )


def _faults(details: Sequence[Mapping[str, Any]], data: Any) -> list[_Fault]:
    by_steps: dict[tuple[str | int, ...], dict[str, None]] = {}
    for detail in details:
        steps = tuple(_steps(detail["loc"], data))
        by_steps.setdefault(steps, {})[_lowered(detail["msg"])] = None
    return [_Fault(steps, tuple(messages)) for steps, messages in by_steps.items()]


def _steps(location: tuple[str | int, ...], data: Any) -> Iterator[str | int]:
    """The location in the caller's data: what pydantic adds to name a union's branch is left out,
    and so is everything below a value that is not what the branch expects."""
    for depth, part in enumerate(location):
        match part, data:
            case int(), list() if part < len(data):
                yield part
                data = data[part]
            case str(), dict() if part in data or depth == len(location) - 1:
                yield part
                data = data.get(part)


def _escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
