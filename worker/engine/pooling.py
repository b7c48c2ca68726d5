"""Vectors of prompts, made of the states of their last tokens or of all."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from infra.errors import PlatformError
from worker.engine.batch import Batch
from worker.engine.event import Embedded, Failure
from worker.engine.request import Embedding
from worker.engine.sequence import Sequence
from worker.models.causal_model import CausalModel


@dataclass(slots=True, eq=False)
class _Pool:
    """What the states of one sequence add up to so far; float64 [hidden]."""

    sequence: Sequence
    total: torch.Tensor


class Pools:
    """Owns the vectors that are being made. Used by the engine's thread."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._pools: dict[str, _Pool] = {}  # by request id

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._pools

    def begin(self, sequence: Sequence) -> None:
        """For a new sequence with a pooling."""
        total = torch.zeros(self._model.hidden_size, dtype=torch.float64)
        self._pools[sequence.request_id] = _Pool(sequence, total)

    def end(self, request_id: str) -> Sequence:
        """Forgets a sequence, which is returned."""
        return self._pools.pop(request_id).sequence

    def request_ids(self) -> set[str]:
        return set(self._pools)

    def read(self, batch: Batch, states: torch.Tensor) -> Iterator[Embedded | Failure]:
        """Of a computed batch: a vector for each sequence that is done, which is still to end.

        `states` are [rows, hidden], of all its pooled positions in its order.
        """
        if not len(states):
            return
        rows = iter(self._model.normed(states).to("cpu", torch.float64))
        for piece in batch.slices:
            if not piece.pooled:
                continue
            pool = self._pools[piece.sequence.request_id]
            # One by one, in the order of the tokens: the same bits however a prompt is divided.
            for row in islice(rows, len(piece.pooled)):
                pool.total += row
            pool.sequence.num_read_tokens = piece.pooled.stop
            if piece.catches_up:
                yield _told(pool)


def _told(pool: _Pool) -> Embedded | Failure:
    request_id = pool.sequence.request_id
    length = pool.total.norm()
    if not (length.isfinite() and length):
        what = "all zero" if length == 0 else "not finite"
        error = PlatformError(f"the model computed numbers that are {what} for this prompt")
        return Failure(request_id, error)
    vector = array("f", (pool.total / length).tolist())
    return Embedded(request_id, Embedding(vector, pool.sequence.num_cached_tokens or 0))
