"""Parameters of the OpenAI API that would change the answer's meaning and that we do not have."""

from typing import Any

from infra.contracts.generation import JsonObject
from infra.errors import Invalid

# Values that ask for nothing: clients send them as defaults.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),  # more of them means more choices than are returned
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, [], ["text"]),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "web_search_options": (None,),
}


def refuse_unsupported(data: JsonObject) -> None:
    """Raises Invalid rather than answer something else than what was asked."""
    for name, neutral in _NEUTRAL.items():
        if data.get(name) not in neutral:
            raise Invalid(f"{name} is not supported", param=name, hint=f"leave {name} out")
