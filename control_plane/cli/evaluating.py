"""`platform eval`: has the worker measure a model in several number formats."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.text import Text

from control_plane.cli.failure import CommandFailed
from control_plane.cli.session import Session
from control_plane.cli.table import table
from control_plane.cli.units import amount
from control_plane.cli.worker_program import PROGRAM, run_worker
from infra.contracts.evaluation import Evaluation, FormatName, FormatQuality

HEADINGS = ("FORMAT", "PERPLEXITY", "CHANGE", "SAME TOKEN", "KL", "WEIGHTS", "PROMISED")


def evaluation_command(
    source: Path, formats: Sequence[FormatName], *, tokens: int, window: int
) -> list[str]:
    """The worker's own program: this one knows no tensors."""
    asked = [argument for name in formats for argument in ("--format", name)]
    sizes = ["--tokens", str(tokens), "--window", str(window)]
    return [*PROGRAM, "eval", str(source.absolute()), *asked, *sizes]


def evaluate(session: Session, source: Path, command: Sequence[str]) -> Evaluation:
    """Runs the worker; raises CommandFailed with its reason."""
    result = run_worker(session, command, doing=f"evaluating {source.name}", what="the evaluation")
    try:
        return Evaluation.model_validate(result)
    except ValidationError as error:
        raise CommandFailed("the evaluation ended without a result") from error


def draw(evaluation: Evaluation) -> list[Text]:
    """One line a format."""
    return table(HEADINGS, map(_row, evaluation.formats), numbers=HEADINGS[1:-1])


def summary(evaluation: Evaluation) -> str:
    """What the table was measured on."""
    return (
        f"{evaluation.tokens} tokens of the project's own text, "
        f"at most {evaluation.window} of context, kernels: {evaluation.kernels}"
    )


def _row(quality: FormatQuality) -> list[Text]:
    return [
        Text(quality.name),
        Text(f"{quality.perplexity:.3f}"),
        Text(f"{quality.change:+.2%}"),
        Text(f"{quality.agreement:.1%}"),
        Text(f"{quality.divergence:.4f}"),
        Text(amount(quality.step_bytes)),
        _promise(quality),
    ]


def _promise(quality: FormatQuality) -> Text:
    if quality.most_change is None:
        return Text("")
    verdict = "kept" if quality.keeps_promise else "broken"
    style = "green" if quality.keeps_promise else "red"
    return Text(f"{quality.most_change:.0%} {verdict}", style=style)
