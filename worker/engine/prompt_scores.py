"""How likely the tokens of prompts were, for requests that want to know."""

from collections.abc import Iterator

import torch

from worker.engine.batch import Batch
from worker.engine.event import PromptScores
from worker.engine.sampler import Told, with_logprobs
from worker.models.causal_model import CausalModel

MOST_ROWS = 64  # of logits that are held at once: 12 MB where the vocabulary has 49,152 tokens


def score_prompts(model: CausalModel, batch: Batch, states: torch.Tensor) -> Iterator[PromptScores]:
    """Of a computed batch; `states` [rows, hidden] of all its scored positions, in its order."""
    first_row = 0
    for piece in batch.slices:
        sequence, scored = piece.sequence, piece.scored
        for first in range(scored.start, scored.stop, MOST_ROWS):
            positions = range(first, min(first + MOST_ROWS, scored.stop))
            count = sequence.request.prompt_logprobs
            assert count is not None
            told = [
                Told(row, sequence.token_ids[position + 1], count)
                for row, position in enumerate(positions)
            ]
            logits = model.head(states[first_row : first_row + len(told)])
            choices = with_logprobs(model.kernels, logits, told)
            first_row += len(told)
            sequence.num_read_tokens = positions.stop
            yield PromptScores(sequence.request_id, tuple(choices))
