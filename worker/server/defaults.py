"""How tokens are chosen where a request does not say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.json_file import read_json_object

_MOST_BYTES = 1 << 20
_HOTTEST = 100.0  # as hot as a request may ask for
_MOST_TOP_K = 1 << 24
_MOST_PENALTY = 100.0


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """OpenAI's own defaults, where the model's authors have no others."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def read_sampling_defaults(model_dir: Path) -> SamplingDefaults:
    """What the model's `generation_config.json` recommends, if there is one.

    Raises SourceInvalid when that is no JSON object; a value that makes no sense says nothing.
    """
    path = model_dir / "generation_config.json"
    if not path.exists():
        return SamplingDefaults()
    return recommended(read_json_object(path, most_bytes=_MOST_BYTES))


def recommended(generation_config: Mapping[str, Any]) -> SamplingDefaults:
    """The defaults of a generation config."""
    defaults = SamplingDefaults()
    temperature = _number(generation_config.get("temperature"))
    top_p = _number(generation_config.get("top_p"))
    top_k = generation_config.get("top_k")
    min_p = _number(generation_config.get("min_p"))
    penalty = _number(generation_config.get("repetition_penalty"))
    return SamplingDefaults(
        temperature=temperature if 0 <= temperature <= _HOTTEST else defaults.temperature,
        top_p=top_p if 0 < top_p <= 1 else defaults.top_p,
        top_k=top_k if type(top_k) is int and 0 <= top_k <= _MOST_TOP_K else defaults.top_k,
        min_p=min_p if 0 <= min_p <= 1 else defaults.min_p,
        repetition_penalty=(
            penalty if 0 < penalty <= _MOST_PENALTY else defaults.repetition_penalty
        ),
    )


def _number(value: Any) -> float:
    """Not a number, in both senses, where it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else float("nan")
