"""The evaluation as a program."""

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from infra.contracts.evaluation import Evaluation, FormatName
from infra.json_program import OnProgress, run_json_program


def run_evaluation(
    folder: Path, out: TextIO, *, formats: Sequence[FormatName], most_tokens: int, window: int
) -> int:
    """Measures the model in `folder` and returns the exit code.

    The result is an Evaluation; see `run_json_program` for what it writes.
    """

    def work(on_progress: OnProgress) -> Evaluation:
        from worker.evaluation.evaluate import evaluate

        return evaluate(
            folder,
            formats=formats,
            most_tokens=most_tokens,
            window=window,
            on_progress=on_progress,
        )

    return run_json_program(work, out, doing="evaluating")
