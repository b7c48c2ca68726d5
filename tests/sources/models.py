"""A maker of small model folders, as bytes by file name."""

import hashlib
import json
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 128,
    "vocab_size": 4,
}
TOKENIZER: dict[str, Any] = {
    "added_tokens": [{"id": 3, "content": "<|end|>"}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġab": 2}, "merges": []},
}
WEIGHTS = bytes(range(256)) * 400


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()


def model_files(**changes: bytes | None) -> dict[str, bytes]:
    """A valid model; `changes` replace files or, None, remove them; `__` is a dot."""
    files: dict[str, bytes | None] = {
        "config.json": as_json(CONFIG),
        "tokenizer.json": as_json(TOKENIZER),
        "tokenizer_config.json": b"{}",
        "model.safetensors": WEIGHTS,
        "README.md": b"# a model",
        "onnx.bin": b"\x80\x04pickle",
    } | {name.replace("__", "."): content for name, content in changes.items()}
    return {name: content for name, content in files.items() if content is not None}


def sharded(count: int = 3) -> dict[str, bytes]:
    """The same model with its weights in several files."""
    names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    index = {"weight_map": {f"layer.{n}": name for n, name in enumerate(names)}}
    files = model_files(model__safetensors=None)
    files["model.safetensors.index.json"] = as_json(index)
    return files | {name: WEIGHTS[n:] for n, name in enumerate(names)}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
