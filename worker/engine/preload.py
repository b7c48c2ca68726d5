"""What a process does before it forks replicas, and what a replica does after."""

import gc
import importlib
import os

from worker.engine.lean_torch import import_torch

# Whatever a replica would import at its first request, so that its parent has done it.
_MODULES = (
    "tokenizers",
    "jinja2.ext",
    "jinja2.sandbox",
    "llguidance",
    "encodings.idna",
    "h11",
    "httptools",
    "orjson",
    "uvicorn",
    "uvicorn.lifespan.off",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
    "worker.engine.async_engine",
    "worker.engine.engine",
    "worker.models.config",
    "worker.models.registry",
    "worker.tokenizer.tokenizer",
    "worker.weights.loader",
)


def preload(*others: str) -> None:
    """Imports everything a replica needs, `others` too; starts no thread and computes nothing.

    A parallel region in the parent would hang every child: OpenMP's threads do not survive a fork.
    """
    os.putenv("OPENBLAS_NUM_THREADS", "1")  # numpy's BLAS starts its threads when it is imported
    gc.disable()  # imports leave hardly any garbage: looking for it took 13 % of them
    try:
        import_torch()
        for module in (*_MODULES, *others):
            importlib.import_module(module)
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
