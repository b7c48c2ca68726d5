"""One rank of a test: `python -m tests.parallel.rank RANK SIZE JOB`, where JOB is a JSON file.

Computes a prompt in two chunks and two tokens one by one, for each model of the job; rank 0 writes
the logits.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from infra.contracts.model_spec import EngineSettings
from worker.engine.preload import after_fork
from worker.kernels.port import Span
from worker.models.config import read_config
from worker.models.registry import build_model
from worker.parallel.group import TorchGroup
from worker.weights.loader import open_weights


def logits_of(model, token_ids):
    """[tokens, vocabulary], in chunks as an engine might compute them."""
    count = len(token_ids)
    blocks = list(range(1, count // 16 + 2))
    cache = model.allocate_cache(num_blocks=len(blocks) + 1, block_size=16)
    rows, first = [], 0
    for end in (count // 2, count - 2, count - 1, count):
        span = Span(first, end - first, blocks)
        rows.append(model.logits(token_ids[first:end], [span], range(end - first), cache))
        first = end
    return torch.cat([row.float() for row in rows])


def main() -> None:
    rank, size, job = int(sys.argv[1]), int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    after_fork(1)
    group = TorchGroup.join(Path(job["meeting"]), rank, size, backend="gloo")
    results = {}
    for name, (folder, settings) in job["models"].items():
        weights = open_weights(Path(folder), lambda _: None, reads_ahead=False)
        config = read_config(Path(folder))
        model = build_model(config, weights, EngineSettings(**settings), group=group)
        results[name] = logits_of(model, job["token_ids"])
    if rank == 0:
        save_file(results, job["results"])
    dist.barrier()  # who leaves first breaks what the others still send
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
