"""A model out of its config, its weights and the settings."""

import torch

from infra.contracts.model_spec import EngineSettings
from worker.kernels.factory import choose_kernels
from worker.models.causal_model import CausalModel
from worker.models.config import ModelConfig
from worker.models.decoder import Decoder
from worker.models.pack import Pack
from worker.models.recorded import RecordedModel
from worker.parallel.group import ALONE, Group
from worker.quantization.quantize import ALGORITHM
from worker.quantization.reader import WeightReader
from worker.weights.loader import Weights
from worker.weights.packed_store import PackedStore
from worker.weights.quantized import Bits

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_KV_DTYPES = {"bfloat16": torch.bfloat16, "int8": torch.int8}
_BITS: dict[str, Bits | None] = {"none": None, "int8": 8, "int4": 4}


def build_model(
    config: ModelConfig,
    weights: Weights,
    settings: EngineSettings,
    *,
    gpus: int = 0,
    group: Group = ALONE,
    pack: Pack | None = None,
) -> Decoder:
    """A rank's share of a model over the weights, copied only where format or device differ.

    Layers that `pack` holds are taken from there, others are put into it as they are packed.
    Raises SourceInvalid when the weights do not fit the config, DependencyMissing for a missing
    GPU, Invalid when the model cannot be divided so.
    """
    dtype = model_dtype(config, settings, gpus=gpus)
    context_tokens = min(config.context_tokens, settings.max_context_tokens or 1 << 20)
    with torch.inference_mode():
        kernels = choose_kernels(gpus=gpus, dtype=dtype, head_dim=config.head_dim)
        reader = WeightReader(weights, config.scheme, _BITS[settings.quantization])
        return Decoder(
            config,
            reader,
            kernels,
            dtype=dtype,
            kv_dtype=_KV_DTYPES.get(settings.kv_cache_dtype, dtype),
            context_tokens=context_tokens,
            group=group,
            pack=pack,
        )


def with_recording(decoder: Decoder) -> CausalModel:
    """The model whose steps are recorded, where its kernels can.

    Not for one of several ranks: how they talk has never been recorded.
    """
    capture = decoder.kernels.capture
    return decoder if capture is None else RecordedModel(decoder, capture)


def open_pack(
    config: ModelConfig,
    settings: EngineSettings,
    store: PackedStore,
    *,
    source_digest: str,
    gpus: int = 0,
    rank: int = 0,
) -> Pack | None:
    """What earlier replicas packed of this source for these settings, or room for it.

    None where the kernels pack nothing.
    """
    dtype = model_dtype(config, settings, gpus=gpus)
    layout = choose_kernels(gpus=gpus, dtype=dtype, head_dim=config.head_dim).layout
    if layout is None:
        return None
    part = f"{rank}/{settings.tensor_parallel}"
    return Pack(
        store, f"{source_digest} {dtype} {settings.quantization}.{ALGORITHM} {layout} {part}"
    )


def model_dtype(config: ModelConfig, settings: EngineSettings, *, gpus: int) -> torch.dtype:
    """Of weights before they are packed. CPUs multiply bfloat16 ten times faster than float16."""
    dtype = _DTYPES[config.dtype if settings.dtype == "auto" else settings.dtype]
    return torch.bfloat16 if dtype is torch.float16 and gpus == 0 else dtype
