"""Measures a model in several number formats, each as it would be served."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from infra.contracts.evaluation import Evaluation, FormatName, FormatQuality
from infra.contracts.model_spec import EngineSettings
from infra.errors import Invalid
from worker.evaluation.measure import Predictions, predict
from worker.evaluation.texts import read_texts, windows
from worker.models.config import ModelConfig, read_config
from worker.models.registry import build_model
from worker.quantization.bits import bits_of
from worker.tokenizer.tokenizer import Tokenizer
from worker.weights.header import ITEM_BYTES, TensorEntry
from worker.weights.loader import open_weights
from worker.weights.plan import plan_weights
from worker.weights.quantized import Bits, packed_bytes

OnProgress = Callable[[float, str], None]

_STORED = "stored"  # the reference of a checkpoint that is quantised already
_ROUNDED: dict[str, Bits] = {"int8": 8, "int4": 4}
_MOST_CHANGE = {"int8": 0.01, "int4": 0.05, "int8-kv": 0.01}
_VOCABULARY = ("lm_head.", "model.embed_tokens.")
_ONE_PRODUCT = re.compile(r"(?<=\.)[qkv]_proj(?=\.)")  # the layers whose names differ there only


def evaluate(
    folder: Path,
    *,
    formats: Sequence[FormatName],
    most_tokens: int,
    window: int,
    on_progress: OnProgress,
) -> Evaluation:
    """The reference (bfloat16, or the checkpoint's own format), then the formats asked for.

    No formats ask for all there are. One model is in memory at a time. Raises what reading a model
    raises, and Invalid when a quantised checkpoint is to be rounded again.
    """
    config = read_config(folder)
    names = _names(config, formats)
    tokenizer = Tokenizer.load(folder)
    window = min(window, config.context_tokens)
    documents = [tokenizer.encode(text, add_special_tokens=True) for text in read_texts()]
    pieces = list(windows(documents, window=window, most_tokens=most_tokens))
    if not pieces:
        raise Invalid("there are no tokens to predict")

    done, total = 0, len(pieces) * len(names)
    reference: Predictions | None = None
    qualities: list[FormatQuality] = []
    kernels = ""
    for name in names:
        on_progress(done / total, name)

        def on_piece(name: str = name) -> None:
            nonlocal done
            done += 1
            on_progress(done / total, name)

        model = build_model(config, open_weights(folder, lambda _: None), _settings(name, window))
        kernels = model.kernels.name
        found = predict(model, pieces, reference=reference, on_piece=on_piece)
        reference = reference or found
        qualities.append(_quality(name, found, reference, step_bytes(folder, config, name)))
    return Evaluation(
        tokens=sum(len(piece) - 1 for piece in pieces),
        window=window,
        kernels=kernels,
        formats=tuple(qualities),
    )


def step_bytes(folder: Path, config: ModelConfig, name: str) -> int:
    """Bytes of weights that a step reads in that format: all but the embedding's table."""
    tied = config.ties_embeddings
    total = 0
    products: dict[str, list[TensorEntry]] = {}
    for shard in plan_weights(folder).shards:
        for entry in shard.tensors:
            is_head = entry.name.startswith(_VOCABULARY)
            if is_head and entry.name.startswith("model.") and not tied:
                continue
            if len(entry.shape) != 2 or name == _STORED or config.scheme is not None:
                total += entry.size
            elif name in _ROUNDED:
                products.setdefault(_ONE_PRODUCT.sub("", entry.name), []).append(entry)
            else:
                total += entry.size // ITEM_BYTES[entry.dtype] * ITEM_BYTES["BF16"]
    weights = open_weights(folder, lambda _: None, reads_ahead=False)
    for product in products.values():
        found = [weights.take(entry.name, entry.shape, torch.bfloat16) for entry in product]
        names = [entry.name.removesuffix(".weight") for entry in product]
        bits = bits_of(names, found, _ROUNDED[name])
        total += sum(packed_bytes(bits, *weight.shape) for weight in found)
    return total


def _names(config: ModelConfig, formats: Sequence[FormatName]) -> list[str]:
    if config.scheme is None:
        wanted = formats or ("int8", "int4", "int8-kv")
        return ["bf16", *(name for name in dict.fromkeys(wanted) if name != "bf16")]
    if any(name in _ROUNDED for name in formats):
        raise Invalid(
            "the weights are quantised already",
            hint="ask for --format int8-kv only: the weights stay as they are",
        )
    return [_STORED, "int8-kv"] if "int8-kv" in formats or not formats else [_STORED]


def _settings(name: str, window: int) -> EngineSettings:
    return EngineSettings(
        dtype="bfloat16",
        quantization="int8" if name == "int8" else "int4" if name == "int4" else "none",
        kv_cache_dtype="int8" if name == "int8-kv" else "auto",
        max_context_tokens=max(window, 16),
    )


def _quality(
    name: str, found: Predictions, reference: Predictions, step_bytes: int
) -> FormatQuality:
    return FormatQuality(
        name=name,
        perplexity=found.perplexity,
        change=found.perplexity / reference.perplexity - 1,
        agreement=found.agreement(reference),
        divergence=found.divergence(reference),
        step_bytes=step_bytes,
        most_change=_MOST_CHANGE.get(name),
    )
