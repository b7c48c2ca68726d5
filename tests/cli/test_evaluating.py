import json
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from control_plane.cli import evaluating
from control_plane.cli.app import Format
from infra.contracts.evaluation import FormatName
from tests.cli.conftest import Run

QUALITY: dict[str, Any] = {
    "name": "bf16",
    "perplexity": 12.0,
    "change": 0.0,
    "agreement": 1.0,
    "divergence": 0.0,
    "step_bytes": 269_000_000,
    "most_change": None,
}
RESULT = {
    "tokens": 3617,
    "window": 512,
    "kernels": "torch",
    "formats": [
        QUALITY,
        QUALITY
        | {
            "name": "int8",
            "perplexity": 12.06,
            "change": 0.005,
            "agreement": 0.95,
            "divergence": 0.00554,
            "step_bytes": 135_000_000,
            "most_change": 0.01,
        },
        QUALITY | {"name": "int4", "perplexity": 12.72, "change": 0.06, "most_change": 0.05},
    ],
}


def worker(monkeypatch: pytest.MonkeyPatch, *lines: object, code: int = 0) -> list[Any]:
    """Puts a small program in the worker's place; the list hears what it is called with."""
    said = "\n".join(json.dumps(line) for line in lines)
    called: list[Any] = []

    def command(source: Path, formats: Any, **sizes: int) -> list[str]:
        called.append((source, list(formats), sizes))
        return [sys.executable, "-c", f"import sys; print({said!r}); sys.exit({code})"]

    monkeypatch.setattr(evaluating, "evaluation_command", command)
    return called


def test_formats_are_compared_in_a_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    called = worker(monkeypatch, {"fraction": 0.5, "step": "int8"}, {"result": RESULT})

    outcome = run("eval", "m", "--format", "int8", "--format", "int4", "--window", "256")

    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "FORMAT  PERPLEXITY  CHANGE  SAME TOKEN      KL   WEIGHTS  PROMISED",
        "bf16        12.000  +0.00%      100.0%  0.0000  269.0 MB",
        "int8        12.060  +0.50%       95.0%  0.0055  135.0 MB  1% kept",
        "int4        12.720  +6.00%      100.0%  0.0000  269.0 MB  5% broken",
    ]
    assert outcome.err.splitlines() == [
        "3617 tokens of the project's own text, at most 512 of context, kernels: torch"
    ]
    assert called == [(Path("m"), ["int8", "int4"], {"tokens": 4096, "window": 256})]


def test_figures_come_as_json_where_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, {"result": RESULT})

    outcome = run("eval", "m", "--json")

    assert json.loads(outcome.out) == RESULT


def test_the_workers_reason_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    worker(monkeypatch, {"error": "config.json is missing", "hint": "look again"}, code=1)

    outcome = run("eval", "m")

    assert outcome.code == 1
    assert outcome.err == "error: config.json is missing\nhint: look again\n"


def test_a_worker_that_ends_without_a_result_has_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(monkeypatch, {"fraction": 1.0, "step": "int8"})

    outcome = run("eval", "m")

    assert (outcome.code, outcome.err) == (1, "error: the evaluation ended without a result\n")


def test_an_unknown_format_is_asked_wrongly(run: Run) -> None:
    assert run("eval", "m", "--format", "int3").code == 2


def test_the_flag_knows_every_format_there_is() -> None:
    assert [it.value for it in Format] == list(get_args(FormatName))


def test_the_worker_is_asked_by_its_own_program() -> None:
    command = evaluating.evaluation_command(Path("/m"), ["int8"], tokens=10, window=5)

    assert command[1:] == [
        *("-m", "worker.main", "eval", "/m", "--format", "int8"),
        *("--tokens", "10", "--window", "5"),
    ]
