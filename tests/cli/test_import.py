import json
import sys
from pathlib import Path

import pytest

from control_plane.cli import exporting, importing
from tests.cli.conftest import Run


def worker(monkeypatch: pytest.MonkeyPatch, program: str) -> list[tuple[Path, Path]]:
    """Puts a small program in the worker's place; the list hears what it is called with."""
    called: list[tuple[Path, Path]] = []

    def command(source: Path, target: Path) -> list[str]:
        called.append((source, target))
        return [sys.executable, "-c", program]

    monkeypatch.setattr(importing, "import_command", command)
    return called


def saying(*lines: object, code: int = 0) -> str:
    said = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return f"import sys; print({chr(10).join(said)!r}, flush=True); sys.exit({code})"


def test_an_import_ends_with_where_the_model_is(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called = worker(monkeypatch, saying({"fraction": 0.4, "step": "weights"}))

    outcome = run("models", "import", "a/x.gguf", str(tmp_path / "model"))

    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"x.gguf is imported: deploy it with source: {tmp_path / 'model'}\n"
    assert called == [(Path("a/x.gguf"), tmp_path / "model")]


def test_progress_is_drawn_on_a_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "control_plane.cli.waiting.Waiting.show",
        lambda waiting, step: (setattr(waiting, "_step", step), waiting._live.refresh()),
    )
    worker(monkeypatch, saying({"fraction": 0.4, "step": "weights"}))

    outcome = run("models", "import", "x.gguf", str(tmp_path), force_terminal=True)

    assert "importing x.gguf  weights 40%  0 ms" in outcome.err


def test_the_workers_reason_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failure = {"error": "x.gguf is not a GGUF file", "hint": "look again"}
    worker(monkeypatch, saying({"fraction": 0, "step": "header"}, failure, code=1))

    outcome = run("models", "import", "x.gguf", str(tmp_path))

    assert (outcome.code, outcome.err) == (
        1,
        "error: x.gguf is not a GGUF file\nhint: look again\n",
    )


def test_a_worker_that_breaks_leaves_its_last_words(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker(monkeypatch, saying(*(f"line {n}" for n in range(50)), code=3))

    outcome = run("models", "import", "x.gguf", str(tmp_path))

    assert outcome.code == 1
    assert outcome.err.splitlines()[0] == "error: the import ended with status 3"
    assert outcome.err.splitlines()[1:] == [f"  line {n}" for n in range(30, 50)]


def test_the_worker_is_asked_by_its_own_program() -> None:
    assert importing.import_command(Path("/a/x.gguf"), Path("/b")) == [
        *(sys.executable, "-m", "worker.main", "import-gguf", "/a/x.gguf", "/b")
    ]


def test_an_export_is_the_workers_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def command(source: Path, target: Path) -> list[str]:
        return [sys.executable, "-c", saying({"fraction": 1, "step": "weights"})]

    monkeypatch.setattr(exporting, "export_command", command)

    outcome = run("models", "export", "chat", str(tmp_path))

    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"chat is exported: deploy it with source: {tmp_path}\n"
