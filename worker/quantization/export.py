"""Writes a model with weights of 8 bits, as compressed-tensors has them, for any engine to read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from infra.errors import SourceInvalid, UnsupportedModel
from infra.json_file import read_json_object
from worker.quantization.quantize import quantize
from worker.weights.header import TensorEntry
from worker.weights.loader import FLOATS, map_file
from worker.weights.model_folder import new_model_folder, write_json
from worker.weights.plan import INDEX_FILE, Shard, plan_weights
from worker.weights.tensor_file import write_tensors

MARKER_NAME: Final = "exported-from.json"
_MOST_CONFIG_BYTES = 4 << 20
_MOST_COPIED_BYTES = 128 << 20
_COPIED_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model"})
_WRITTEN = frozenset({"config.json", INDEX_FILE, MARKER_NAME})
_VOCABULARY = ("lm_head.", "model.embed_tokens.")


def export_int8(source: Path, target: Path, on_progress: Callable[[float, str], None]) -> None:
    """Makes the folder `target`: int8 weights with a scale a row, activations rounded at run time.

    Embedding and output layer stay as they are. An earlier export at `target` is replaced;
    anything else there is left alone: Conflict. Raises what reading a model raises,
    UnsupportedModel for one that is quantised already, SourceUnavailable when the disk refuses.
    """
    config = read_json_object(source / "config.json", most_bytes=_MOST_CONFIG_BYTES)
    if config.get("quantization_config") is not None:
        raise UnsupportedModel("the weights are quantised already")
    plan = plan_weights(source)
    with new_model_folder(target, marker=MARKER_NAME) as folder:
        places: dict[str, str] = {}
        done = 0
        for shard in plan.shards:
            tensors = _rounded(shard)
            write_tensors(folder / shard.path.name, tensors)
            places.update(dict.fromkeys(tensors, shard.path.name))
            done += shard.size
            on_progress(done / plan.total_bytes, "weights")
        if len(plan.shards) > 1:
            write_json(folder / INDEX_FILE, {"metadata": {}, "weight_map": places})
        write_json(folder / "config.json", config | {"quantization_config": _quantization_config()})
        write_json(folder / MARKER_NAME, {"format": "W8A8", "folder": source.name})
        _copy_others(source, folder)


def _rounded(shard: Shard) -> dict[str, torch.Tensor]:
    """The shard's tensors, linear layers with their scales."""
    found = map_file(shard.path)
    tensors: dict[str, torch.Tensor] = {}
    for entry in shard.tensors:
        tensor = found[entry.name]
        if not _is_linear(entry):
            tensors[entry.name] = tensor
            continue
        if not bool(tensor.isfinite().all()):
            raise SourceInvalid(f"{entry.name!r} holds numbers that are not finite")
        quantized = quantize(tensor, 8)
        tensors[entry.name] = quantized.codes
        tensors[f"{entry.name}_scale"] = quantized.scale
    return tensors


def _is_linear(entry: TensorEntry) -> bool:
    is_matrix = len(entry.shape) == 2 and entry.dtype in FLOATS
    return is_matrix and entry.name.endswith(".weight") and not entry.name.startswith(_VOCABULARY)


def _copy_others(source: Path, folder: Path) -> None:
    """Tokenizer, chat template, generation defaults: whatever is small and not weights."""
    for path in sorted(source.iterdir()):
        if path.suffix not in _COPIED_SUFFIXES or path.name in _WRITTEN or not path.is_file():
            continue
        if path.stat().st_size <= _MOST_COPIED_BYTES:
            shutil.copyfile(path, folder / path.name)


def _quantization_config() -> dict[str, Any]:
    """https://github.com/vllm-project/compressed-tensors"""
    common = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": common | {"strategy": "channel", "dynamic": False},
                "input_activations": common | {"strategy": "token", "dynamic": True},
                "output_activations": None,
            }
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
