"""Generates the Python of `protos/*.proto`; grpcio-tools comes with `scripts/install --dev`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROTOS = Path("infra/containerd/protos")


def generate(target: Path) -> None:
    """Writes `*_pb2.py` and `*_pb2.pyi` below `target`, at the places they have below the root."""
    names = sorted(str(path.relative_to(ROOT)) for path in (ROOT / PROTOS).glob("*.proto"))
    outputs = [f"--python_out={target}", f"--pyi_out={target}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *names]
    subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    generate(ROOT)
