"""Torch without what it does not need to compute: all of it is there for who asks."""

import subprocess
import sys

import pytest

from worker.engine.lean_torch import DEFERRED

WHOLE = """
import sys
import torch
from worker.engine.lean_torch import DEFERRED

for name in DEFERRED:
    print(name, *vars(sys.modules[name]))
"""

# Each deferred module runs in a process of its own, as if it were the first to be asked for.
LEAN = """
import os, sys
from worker.engine.deferred_modules import is_deferred
from worker.engine.lean_torch import DEFERRED, import_torch

import_torch()
left = [name for name in DEFERRED if not is_deferred(sys.modules[name])]
assert not left, f"torch itself asks for {left}"
for line in sys.stdin:
    module, *names = line.split()
    child = os.fork()
    if child == 0:
        missing = [name for name in names if not hasattr(sys.modules[module], name)]
        print(module, len(names) > 5, missing, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""

COMPUTES = """
import sys
from worker.engine.deferred_modules import is_deferred
from worker.engine.lean_torch import DEFERRED, import_torch

import_torch()
import torch
import torch.nn.functional as F

with torch.inference_mode():
    q = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16)
    F.scaled_dot_product_attention(F.silu(q), q, q, is_causal=True)
    torch.manual_seed(1)
    torch.randn(9).softmax(0).sort()
torch.library.define("lean::twice", "(Tensor x) -> Tensor")
torch.library.impl("lean::twice", "CPU", lambda x: x * 2)
assert torch.ops.lean.twice(torch.ones(2)).tolist() == [2, 2]
asked = [name for name in DEFERRED if not is_deferred(sys.modules[name])]
assert not asked, f"computing asks for {asked}"

x = torch.ones(3, requires_grad=True)
(x * x).sum().backward()
assert x.grad.tolist() == [2, 2, 2]
alone = torch.distributed.HashStore()
torch.distributed.init_process_group("gloo", store=alone, rank=0, world_size=1)
torch.distributed.all_reduce(x.detach())
model = torch.nn.Linear(3, 1)
torch.optim.SGD(model.parameters(), lr=0.1).step()
torch.utils.data.DataLoader([1, 2])
assert torch.vmap(lambda row: row.sum())(torch.ones(2, 3)).tolist() == [3, 3]
assert not is_deferred(torch._meta_registrations)
assert torch.empty(2, 3, device="meta").sort(0)[0].shape == (2, 3)
try:
    torch.Generator()
except RuntimeError as error:
    assert "torch._prims.rng_prims must be imported first" in str(error)
    import torch._prims.rng_prims
torch.randn(9, generator=torch.Generator().manual_seed(1))
print("all of it")
"""

ANOTHER = """
import sys
from worker.engine.deferred_modules import is_deferred
from worker.engine.lean_torch import DEFERRED, import_torch

import_torch("2.13.0+another")
print([name for name in DEFERRED if is_deferred(sys.modules[name])])
"""


def run(program: str, text: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=text,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.real
def test_each_deferred_module_has_what_it_would_have_had() -> None:
    lines = run(LEAN, run(WHOLE)).splitlines()
    assert lines == [f"{module} True []" for module in DEFERRED]


@pytest.mark.real
def test_torch_computes_without_them_and_does_all_else_with_them() -> None:
    assert run(COMPUTES) == "all of it\n"


@pytest.mark.real
def test_another_version_is_imported_whole() -> None:
    assert run(ANOTHER) == "[]\n"
