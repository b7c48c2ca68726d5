import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gguf_import.tiny import write_gguf
from worker.weights.import_program import run_import


def lines(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_progress_is_said_once_a_percent(tmp_path: Path) -> None:
    out = io.StringIO()

    code = run_import(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model", out)

    assert code == 0
    said = [(int(float(str(line["fraction"])) * 100), line["step"]) for line in lines(out)]
    assert len(said) == len(set(said))
    assert said[0] == (0, "header")
    assert said[-1] == (100, "done")


def test_a_failure_is_the_last_line(tmp_path: Path) -> None:
    out = io.StringIO()
    source = write_gguf(tmp_path / "tiny.gguf", pre="falcon")

    code = run_import(source, tmp_path / "model", out)

    assert code == 1
    assert lines(out)[-1] == {
        "error": "tiny.gguf: pre-tokenizer 'falcon' cannot be imported",
        "hint": "these can: gpt-2, smollm, starcoder, refact, llama-bpe, llama3, llama-v3, qwen2",
    }


def test_a_missing_package_is_said_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "worker.weights.gguf_import", None)
    out = io.StringIO()

    assert run_import(tmp_path / "a", tmp_path / "b", out) == 1

    assert lines(out)[-1]["hint"] == "pip install 'firstlight[worker]'"


@pytest.mark.real
def test_the_worker_imports_as_a_program(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    command = [sys.executable, "-m", "worker.main", "import-gguf", source, tmp_path / "model"]

    done = subprocess.run(command, capture_output=True, check=True, timeout=60)

    assert json.loads(done.stdout.splitlines()[-1]) == {"fraction": 1.0, "step": "done"}
    assert (tmp_path / "model/config.json").is_file()
