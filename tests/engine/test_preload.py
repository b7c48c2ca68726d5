"""A process that has loaded everything may be forked, and its children compute on two threads."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

from worker.engine import preload
from worker.engine.preload import after_fork
from worker.main import load

is_beside, waiting = [], []
load_code_of, load_extension = preload.loading_code_of, ExtensionFileLoader.create_module


@contextmanager
def watched(folder):
    with load_code_of(folder):
        is_beside.append(True)
        yield
        is_beside.clear()
    is_there = "libtorch_cpu.so" in Path("/proc/self/maps").read_text()
    assert is_there == (folder is not None) and "torch" not in sys.modules


def watched_extension(loader, spec):
    if is_beside:
        waiting.append(spec.name)
    return load_extension(loader, spec)


preload.loading_code_of, ExtensionFileLoader.create_module = watched, watched_extension
load()
assert not waiting, f"has machine code, so it belongs into preload._WITH_CODE: {waiting}"
unused = {"greenlet", "pynvml", "rich"} & set(sys.modules)
assert not unused, f"imported for nobody: {unused}"
import rich, structlog
structlog.dev.ConsoleRenderer()
assert len(os.listdir("/proc/self/task")) == 1, "the parent has threads"
loaded = set(sys.modules)
import torch
has_compiler = "torch._dynamo" in loaded
assert has_compiler == (torch.version.cuda is not None), "torch's compiler takes a second to import"


def replica() -> None:
    after_fork(2)
    from infra.contracts.model_spec import EngineSettings
    from worker.engine.deferred_modules import is_deferred
    from worker.engine.engine import Engine
    from worker.engine.request import GenerationRequest, SamplingParams
    from worker.models.config import read_config
    from worker.models.registry import build_model
    from worker.tokenizer.tokenizer import Tokenizer
    from worker.weights.loader import open_weights

    folder, settings = Path(sys.argv[1]), EngineSettings()
    weights = open_weights(folder, lambda fraction: None)
    model = build_model(read_config(folder), weights, settings)
    tokenizer = Tokenizer.load(folder)
    engine = Engine(model, tokenizer, settings)
    engine.warm()
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.encode_chat(messages, now=0)
    engine.submit(GenerationRequest("r", tuple(prompt), SamplingParams(16, temperature=0)))
    answer, text = tokenizer.stream(), ""
    while engine.has_work():
        for event in engine.step():
            text += answer.push(event.choice.token_id)
    assert len(os.listdir("/proc/self/task")) >= 2, "the child computes on one thread"
    late = {name for name in set(sys.modules) - loaded if name.startswith(("worker", "torch."))}
    assert not late, f"imported after the fork: {sorted(late)}"
    assert is_deferred(sys.modules["torch.optim"]), "torch's deferred parts have run"
    print(text, flush=True)


for _ in range(2):
    child = os.fork()
    if child == 0:
        try:
            replica()
        except BaseException as error:
            print(repr(error), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.real
def test_children_of_a_loaded_parent_answer(smollm2_dir: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(smollm2_dir)],
        env=environment | {"OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.splitlines() == ["The capital of France is Paris."] * 2, done.stderr
