"""What `config.json` says of a model's shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.errors import SourceInvalid, UnsupportedModel
from infra.json_file import read_json_object
from worker.quantization.scheme import Scheme, parse_scheme

MOST_CONFIG_BYTES = 4 << 20
ARCHITECTURES = frozenset({"LlamaForCausalLM"})

Dtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, the ones between blended (Llama 3.1)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al. 2021): base, and how it is stretched."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama family."""

    architecture: str
    vocabulary: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_epsilon: float
    rope: Rope
    context_tokens: int
    ties_embeddings: bool
    has_attention_bias: bool
    has_mlp_bias: bool
    dtype: Dtype
    scheme: Scheme | None  # of a checkpoint that is quantised already


def read_config(model_dir: Path) -> ModelConfig:
    """Reads and checks `config.json`.

    Raises SourceInvalid when a field is missing or makes no sense, UnsupportedModel when it asks
    for something that this engine does not compute.
    """
    return parse_config(read_json_object(model_dir / "config.json", most_bytes=MOST_CONFIG_BYTES))


def parse_config(values: Mapping[str, Any]) -> ModelConfig:
    """As `read_config`, of the parsed file."""
    fields = _Fields(values)
    architecture = _architecture(values)
    _refuse_unsupported(values)
    num_heads = fields.integer("num_attention_heads", most=1 << 14)
    hidden_size = fields.integer("hidden_size", most=1 << 20)
    config = ModelConfig(
        architecture=architecture,
        vocabulary=fields.integer("vocab_size", most=1 << 24),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", most=1 << 22),
        num_layers=fields.integer("num_hidden_layers", most=1 << 12),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", most=num_heads, default=num_heads),
        head_dim=fields.integer("head_dim", most=1 << 12, default=max(1, hidden_size // num_heads)),
        rms_norm_epsilon=fields.number("rms_norm_eps", least=0, most=1, default=1e-6),
        rope=_rope(fields),
        context_tokens=fields.integer("max_position_embeddings", most=1 << 27, default=2048),
        ties_embeddings=fields.flag("tie_word_embeddings"),
        has_attention_bias=fields.flag("attention_bias"),
        has_mlp_bias=fields.flag("mlp_bias"),
        dtype=_dtype(values),
        scheme=parse_scheme(values.get("quantization_config")),
    )
    if config.num_heads % config.num_kv_heads:
        raise SourceInvalid("config.json: num_key_value_heads does not divide num_attention_heads")
    if config.head_dim % 2:
        raise SourceInvalid("config.json: head_dim is odd, which rotary embeddings rule out")
    return config


class _Fields:
    """Typed access to a JSON object whose author is unknown."""

    def __init__(self, values: Mapping[str, Any], *, path: str = "") -> None:
        self._values = values
        self._path = path

    def integer(self, name: str, *, most: int, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self._wrong(name, f"an integer from 1 to {most}")
        return value

    def number(
        self, name: str, *, least: float, most: float, default: float | None = None
    ) -> float:
        value = self._get(name, default)
        if type(value) not in {int, float} or not least <= value <= most:
            raise self._wrong(name, f"a number from {least} to {most}")
        return float(value)

    def flag(self, name: str) -> bool:
        """False where it is not given."""
        value = self._get(name, False)
        if type(value) is not bool:
            raise self._wrong(name, "true or false")
        return value

    def object(self, name: str) -> "_Fields | None":
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return _Fields(value, path=f"{self._path}{name}.")

    def text(self, *names: str) -> str | None:
        """The first of the names that is given."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, str):
                return value
            if value is not None:
                raise self._wrong(name, "a text")
        return None

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is None and default is None:
            raise SourceInvalid(f"config.json lacks {self._path}{name}")
        return default if value is None else value

    def _wrong(self, name: str, expected: str) -> SourceInvalid:
        return SourceInvalid(f"config.json: {self._path}{name} is not {expected}")


def _architecture(values: Mapping[str, Any]) -> str:
    match values.get("architectures"):
        case [str(architecture)] if architecture in ARCHITECTURES:
            return architecture
        case [str(architecture)]:
            raise UnsupportedModel(
                f"the architecture {architecture[:100]} is unknown",
                hint=f"this engine runs {', '.join(sorted(ARCHITECTURES))}",
            )
        case _:
            raise SourceInvalid("config.json does not name one architecture")


def _refuse_unsupported(values: Mapping[str, Any]) -> None:
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedModel(f"the activation {str(values['hidden_act'])[:50]} is unknown")
    if values.get("partial_rotary_factor", 1) not in (1, None):
        raise UnsupportedModel("the rotary embedding covers a part of each head only")


def _rope(fields: _Fields) -> Rope:
    """Reads both spellings: `rope_theta` with `rope_scaling`, and transformers 5's one object."""
    parameters = fields.object("rope_parameters") or fields.object("rope_scaling")
    holder = parameters if parameters is not None and "rope_theta" in parameters else fields
    theta = holder.number("rope_theta", least=1, most=1e30, default=10_000.0)
    kind = None if parameters is None else parameters.text("rope_type", "type")
    if parameters is None or kind in {None, "default"}:
        return Rope(theta, None)
    match kind:
        case "linear":
            return Rope(theta, LinearScaling(_factor(parameters, "factor")))
        case "llama3":
            return Rope(theta, _llama3(parameters))
        case _:
            raise UnsupportedModel(f"the rope scaling {str(kind)[:50]} is unknown")


def _llama3(parameters: _Fields) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=_factor(parameters, "factor"),
        low_frequency_factor=_factor(parameters, "low_freq_factor"),
        high_frequency_factor=_factor(parameters, "high_freq_factor"),
        original_context_tokens=parameters.integer(
            "original_max_position_embeddings", most=1 << 27
        ),
    )
    if scaling.low_frequency_factor >= scaling.high_frequency_factor:
        raise SourceInvalid("config.json: low_freq_factor is not below high_freq_factor")
    return scaling


def _factor(parameters: _Fields, name: str) -> float:
    return parameters.number(name, least=1e-3, most=1e6)


def _dtype(values: Mapping[str, Any]) -> Dtype:
    match values.get("dtype", values.get("torch_dtype", "float32")):
        case "bfloat16":
            return "bfloat16"
        case "float16":
            return "float16"
        case "float32" | None:
            return "float32"
        case other:
            raise UnsupportedModel(f"the number format {str(other)[:50]} is unknown")
