"""Which class runs which architecture."""

import torch

from infra.contracts.model_spec import EngineSettings
from worker.kernels.factory import choose_kernels
from worker.models.causal_model import CausalModel
from worker.models.config import ModelConfig
from worker.models.llama import Llama
from worker.weights.loader import Weights

_CLASSES = {"LlamaForCausalLM": Llama}
# Half precision is kept in bfloat16: CPUs multiply it ten times faster than float16.
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.bfloat16,
    "float32": torch.float32,
}


def build_model(
    config: ModelConfig, weights: Weights, settings: EngineSettings, *, gpus: int = 0
) -> CausalModel:
    """A model over the weights; they are copied only where format or device differ.

    Raises SourceInvalid when the weights do not fit the config, DependencyMissing for a missing
    GPU.
    """
    dtype = config.dtype if settings.dtype == "auto" else settings.dtype
    context_tokens = min(config.context_tokens, settings.max_context_tokens or 1 << 20)
    with torch.inference_mode():
        return _CLASSES[config.architecture](
            config,
            weights,
            choose_kernels(gpus=gpus),
            dtype=_DTYPES[dtype],
            context_tokens=context_tokens,
        )
