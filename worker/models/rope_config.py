"""What `config.json` says of rotary positions."""

import math
from dataclasses import dataclass

from infra.errors import SourceInvalid, UnsupportedModel
from worker.models.config_fields import Fields

MOST_CONTEXT_TOKENS = 1 << 27


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """The base grows with the context, beyond the one of training (NTK-aware)."""

    factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Slow channels are stretched, fast ones kept, and angles made larger (Peng et al. 2023).

    `fast` and `slow` are turns in the original context, between which channels are blended.
    """

    factor: float
    original_context_tokens: int
    magnitude: float
    fast: float = 32.0
    slow: float = 1.0
    is_truncated: bool = True  # bounds of the blend are whole channels


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies divided by `factor`, high ones kept, the ones between blended (Llama 3.1)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context_tokens: int


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """Each channel slowed by a factor of its own, and angles made larger (Ding et al. 2024).

    Contexts of the original length and longer ones have factors each, [rotary_dim / 2].
    """

    original_context_tokens: int
    magnitude: float
    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]


Scaling = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al. 2021): base, and how it is stretched."""

    theta: float
    scaling: Scaling | None

    def stretched(self, context_tokens: int) -> int:
        """Positions that can be told apart, where the config says `context_tokens`."""
        match self.scaling:
            case DynamicScaling(factor):
                stretched = context_tokens * factor
            case YarnScaling(factor, original):
                stretched = original * factor
            case _:
                return context_tokens
        return min(max(context_tokens, int(stretched)), MOST_CONTEXT_TOKENS)


def parse_ropes(
    fields: Fields, *, context_tokens: int, theta: float = 10_000.0, local_theta: float | None
) -> tuple[Rope, ...]:
    """One for all layers; where a `local_theta` is the default, a second of layers with a window.

    Reads the spellings of transformers 4 (`rope_theta`, `rope_scaling`, `rope_local_base_freq`)
    and 5 (`rope_parameters`, perhaps by kind of layer).
    """
    given = fields.object("rope_parameters") or fields.object("rope_scaling")
    if local_theta is None:
        return (_rope(given, fields, "rope_theta", theta, context_tokens),)
    by_kind = given if given is not None and _names_kinds(given) else None
    everywhere = given if by_kind is None else by_kind.object("full_attention")
    local = None if by_kind is None else by_kind.object("sliding_attention")
    return (
        _rope(everywhere, fields, "rope_theta", theta, context_tokens),
        _rope(local, fields, "rope_local_base_freq", local_theta, context_tokens),
    )


def _names_kinds(given: Fields) -> bool:
    return "full_attention" in given or "sliding_attention" in given


def _rope(
    parameters: Fields | None, fields: Fields, name: str, theta: float, context_tokens: int
) -> Rope:
    if parameters is not None and "rope_theta" in parameters:
        theta = _theta(parameters, "rope_theta", theta)
    else:
        theta = _theta(fields, name, theta)
    kind = None if parameters is None else parameters.text("rope_type", "type")
    if parameters is None or kind in {None, "default"}:
        return Rope(theta, None)
    match kind:
        case "linear":
            return Rope(theta, LinearScaling(_factor(parameters, "factor")))
        case "dynamic":
            factor = parameters.number("factor", least=1, most=1e6)
            return Rope(theta, DynamicScaling(factor, context_tokens))
        case "yarn":
            return Rope(theta, _yarn(parameters, theta, context_tokens))
        case "llama3":
            return Rope(theta, _llama3(parameters))
        case "longrope" | "su":  # Phi-3's first name for it
            return Rope(theta, _longrope(parameters, fields, context_tokens))
        case _:
            raise UnsupportedModel(f"the rope scaling {str(kind)[:50]} is unknown")


def _theta(fields: Fields, name: str, default: float) -> float:
    return fields.number(name, least=1, most=1e30, default=default)


def _yarn(parameters: Fields, theta: float, context_tokens: int) -> YarnScaling:
    if theta <= 1:
        raise SourceInvalid("config.json: yarn needs a rope_theta above 1")
    factor = parameters.number("factor", least=1, most=1e6)
    return YarnScaling(
        factor=factor,
        original_context_tokens=parameters.integer(
            "original_max_position_embeddings", most=MOST_CONTEXT_TOKENS, default=context_tokens
        ),
        magnitude=_yarn_magnitude(parameters, factor),
        fast=_factor(parameters, "beta_fast", 32.0),
        slow=_factor(parameters, "beta_slow", 1.0),
        is_truncated=parameters.flag("truncate", default=True),
    )


def _yarn_magnitude(parameters: Fields, factor: float) -> float:
    """See transformers' `_compute_yarn_parameters`; DeepSeek's configs have the two `mscale`."""
    if "attention_factor" in parameters:
        return _factor(parameters, "attention_factor")
    growth = 0.1 * math.log(factor)
    scale = parameters.number("mscale", least=0, most=1e3, default=0.0)
    scale_of_all = parameters.number("mscale_all_dim", least=0, most=1e3, default=0.0)
    if scale and scale_of_all:
        return (scale * growth + 1) / (scale_of_all * growth + 1)
    return growth + 1


def _llama3(parameters: Fields) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=_factor(parameters, "factor"),
        low_frequency_factor=_factor(parameters, "low_freq_factor"),
        high_frequency_factor=_factor(parameters, "high_freq_factor"),
        original_context_tokens=parameters.integer(
            "original_max_position_embeddings", most=MOST_CONTEXT_TOKENS
        ),
    )
    if scaling.low_frequency_factor >= scaling.high_frequency_factor:
        raise SourceInvalid("config.json: low_freq_factor is not below high_freq_factor")
    return scaling


def _longrope(parameters: Fields, fields: Fields, context_tokens: int) -> LongRopeScaling:
    name = "original_max_position_embeddings"
    holder = fields if name in fields else parameters
    original = holder.integer(name, most=MOST_CONTEXT_TOKENS)
    factor = _factor(parameters, "factor", context_tokens / original)
    magnitude = 1.0
    if "attention_factor" in parameters:
        magnitude = _factor(parameters, "attention_factor")
    elif factor > 1 and original > 1:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        original_context_tokens=original,
        magnitude=magnitude,
        short_factors=parameters.numbers("short_factor", least=1e-3, most=1e6),
        long_factors=parameters.numbers("long_factor", least=1e-3, most=1e6),
    )


def _factor(parameters: Fields, name: str, default: float | None = None) -> float:
    return parameters.number(name, least=1e-3, most=1e6, default=default)
