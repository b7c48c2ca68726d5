"""What a process does before it forks replicas, and what a replica does after."""

import gc
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from worker.engine.lean_torch import folder_of_torch, import_torch
from worker.engine.torch_code import loading_code_of

# Whatever a replica would import at its first request, so that its parent has done it.
# First what has machine code of its own, since the next ones are imported while torch's is loaded.
_WITH_CODE = (
    "infra.contracts.base",  # pydantic, and the first model: that one seeds pydantic's hash tables
    "asyncio",
    "csv",
    "decimal",
    "httptools",
    "llguidance",
    "lzma",
    "markupsafe._speedups",
    "mmap",
    "multiprocessing.connection",
    "orjson",
    "resource",
    "ssl",
    "statistics",
    "tokenizers",
    "unicodedata",
    "uuid",
    "uvloop",
    "zoneinfo",
)
_WITHOUT_TORCH = (
    "encodings.idna",
    "h11",
    "jinja2.ext",
    "jinja2.sandbox",
    "uvicorn",
    "uvicorn.lifespan.off",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "worker.engine.async_engine",
    "worker.tokenizer.tokenizer",
)
_WITH_TORCH = (
    "worker.engine.engine",
    "worker.models.config",
    "worker.models.registry",
    "worker.weights.loader",
)
# What others would import because it is installed, and no replica uses.
_UNUSED = (
    "greenlet",  # structlog would know its threads; replicas have none
    "pynvml",  # the agent reads GPUs
    "rich",  # structlog would draw tracebacks with it; ours are plain
)


def preload(*, without_torch: Iterable[str] = (), with_torch: Iterable[str] = ()) -> None:
    """Imports everything a replica needs, the named modules too; leaves no thread behind and
    computes nothing.

    A parallel region in the parent would hang every child: OpenMP's threads do not survive a fork.
    """
    os.putenv("OPENBLAS_NUM_THREADS", "1")  # numpy's BLAS starts its threads when it is imported
    gc.disable()  # imports leave hardly any garbage: looking for it took 13 % of them
    try:
        with _absent(*_UNUSED):
            _import(_WITH_CODE)
            with loading_code_of(folder_of_torch()):
                _import((*_WITHOUT_TORCH, *without_torch))
            import_torch()
            _import((*_WITH_TORCH, *with_torch))
    finally:
        gc.enable()
    after_fork(1)
    import torch

    if torch.version.cuda is not None:  # which is all that may be asked before a fork
        importlib.import_module("worker.kernels.cuda")
    from worker.kernels.factory import native_library

    native_library()


def after_fork(threads: int) -> None:
    """Sets how many threads torch's operators use in this process, from its next thread on too."""
    import torch

    torch.set_num_threads(threads)


def _import(names: Iterable[str]) -> None:
    for name in names:
        importlib.import_module(name)


@contextmanager
def _absent(*names: str) -> Iterator[None]:
    """As if these were not installed, for whoever can do without them."""
    hidden = {name: None for name in names if name not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None: an import of it raises
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
