"""The control plane runs where nothing of the worker is installed."""

import subprocess
import sys

WORKERS_ALONE = ("torch", "safetensors", "numpy", "tokenizers", "jinja2", "gguf", "boto3")


def test_the_control_plane_imports_nothing_that_only_a_worker_installs() -> None:
    program = f"""
import sys
for name in {WORKERS_ALONE!r}:
    sys.modules[name] = None
import control_plane.main, control_plane.process
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr.decode()
