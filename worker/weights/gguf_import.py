"""Turns a GGUF file into an ordinary Hugging Face folder, whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from infra.errors import SourceInvalid
from worker.weights.gguf_file import GgufFile
from worker.weights.gguf_model import model_config, plan_tensors, read_shape
from worker.weights.gguf_reader import read_gguf
from worker.weights.gguf_tokenizer import convert_tokenizer
from worker.weights.model_folder import new_model_folder, write_json
from worker.weights.safetensors_writer import write_safetensors

MARKER_NAME: Final = "imported-from.json"
MAX_SHARD_BYTES: Final = 5_000_000_000

OnProgress = Callable[[float, str], None]


def import_gguf(
    source: Path,
    target: Path,
    on_progress: OnProgress,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config.json, bfloat16 safetensors, tokenizer and chat template into `target`.

    `on_progress` hears (fraction, step). An earlier import at `target` is replaced, an empty
    folder filled; anything else there is left alone: Conflict. Raises SourceInvalid for a broken
    GGUF, UnsupportedModel for one that cannot be converted faithfully, SourceUnavailable when the
    disk refuses. `target` appears complete, in one rename.
    """
    on_progress(0.0, "header")
    gguf = read_gguf(source)
    with new_model_folder(target, marker=MARKER_NAME) as folder:
        _write_model(gguf, folder, on_progress, max_shard_bytes)
    on_progress(1.0, "done")


def _write_model(
    gguf: GgufFile, folder: Path, on_progress: OnProgress, max_shard_bytes: int
) -> None:
    shape = read_shape(gguf)
    tensors = plan_tensors(gguf, shape)
    on_progress(0.0, "tokenizer")
    tokenizer = convert_tokenizer(gguf, context_tokens=shape.context_tokens)
    if tokenizer.size > shape.vocabulary:
        raise SourceInvalid(
            f"{gguf.path.name}: {tokenizer.size} tokens for {shape.vocabulary} embeddings"
        )
    write_json(
        folder / "config.json", model_config(gguf, shape, bos=tokenizer.bos, eos=tokenizer.eos)
    )
    write_json(folder / "generation_config.json", tokenizer.generation_config)
    write_json(folder / "tokenizer.json", tokenizer.tokenizer)
    write_json(folder / "tokenizer_config.json", tokenizer.tokenizer_config)
    write_json(folder / MARKER_NAME, _provenance(gguf))

    total = sum(tensor.size for tensor in tensors)
    written = 0

    def on_bytes(count: int) -> None:
        nonlocal written
        written += count
        on_progress(written / total, "weights")

    write_safetensors(folder, tensors, max_shard_bytes=max_shard_bytes, on_bytes=on_bytes)


def _provenance(gguf: GgufFile) -> dict[str, Any]:
    """Where the folder came from; also what marks it as ours to replace."""
    general = {
        key.removeprefix("general."): value
        for key, value in gguf.metadata.items()
        if key.startswith("general.") and isinstance(value, str) and len(value) <= 1024
    }
    return {
        "format": "gguf",
        "file": gguf.path.name,
        "bytes": gguf.path.stat().st_size,
        "general": general,
    }
