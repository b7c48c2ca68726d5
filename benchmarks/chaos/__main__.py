"""Harms the real platform while it is used, and says whether what it promises held."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.chaos.run import Run
from benchmarks.chaos.verdict import summary
from tests.engine.tiny import write_model

_MOST_SHOWN = 40


def main() -> None:
    """Prints each fault as it happens, how all ended, and the verdict; exit code 1 if bad."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the same faults in the same order")
    parser.add_argument("--minutes", type=float, default=2, help="so long things go wrong")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a tiny random model in place of SmolLM2: more of everything happens in the time",
    )
    parser.add_argument("--log", type=Path, help="keep the platform's own log in this file")
    arguments = parser.parse_args()
    smollm2 = Path(os.environ["FIRSTLIGHT_TEST_MODEL"])  # noqa: TID251 - set by scripts/chaos
    environment = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - what children inherit
        if not name.startswith("PLATFORM_")
    }
    with tempfile.TemporaryDirectory(prefix="firstlight-model-") as folder:
        model = tiny_model(Path(folder) / "tiny", smollm2) if arguments.tiny else smollm2
        run = Run(model, environment, seed=arguments.seed, say=_say)
        run.go(seconds=arguments.minutes * 60, keep=arguments.log)
    _say(summary(run.records))
    for line in run.broken[:_MOST_SHOWN]:
        _say(f"VIOLATED  {line}")
    if len(run.broken) > _MOST_SHOWN:
        _say(f"and {len(run.broken) - _MOST_SHOWN} more")
    _say(f"seed {arguments.seed}: {'FAIL' if run.broken else 'PASS'}")
    sys.exit(bool(run.broken))


def tiny_model(folder: Path, tokenizer_of: Path) -> Path:
    """A random model of two small layers that speaks the other one's tokens."""
    vocabulary = json.loads((tokenizer_of / "config.json").read_text())["vocab_size"]
    write_model(folder, vocab_size=vocabulary)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tokenizer_of / name, folder)
    return folder


def _say(line: str) -> None:
    Console(highlight=False, soft_wrap=True, markup=False).print(line)


if __name__ == "__main__":
    main()
