"""A fresh node that pulls an image over the link and imports torch in a container of it."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.link import RunningLink
from benchmarks.measure.torch_image import ENVIRONMENT, in_image
from infra.registry.reference import Reference
from tests.support.containerd import SNAPSHOTTER, RunningContainerd, running_containerd
from tests.support.processes import until
from tests.support.snapshotter import RunningSnapshotter, running_snapshotter
from worker.node.container.pull_service import PullService

_DONE = "done"
_CODE = f"import torch; print({_DONE!r}, flush=True)"


@dataclass(frozen=True, slots=True)
class Start:
    """From the request for the image to `import torch` done, on a node that had nothing of it."""

    pull_s: float
    import_s: float  # from the start of the container
    fetched_bytes: int  # over the link, until then
    second_s: float  # another container of it, to `import torch` done

    @property
    def total_s(self) -> float:
        return self.pull_s + self.import_s


def plain_start(link: RunningLink, image: str) -> Start:
    """`ctr images pull`, and overlayfs."""
    with running_containerd() as containerd:
        before = link.num_bytes()
        began = time.monotonic()
        containerd.ctr("images", "pull", "--plain-http", image)
        pull_s = time.monotonic() - began
        import_s = _import(containerd, image, "overlayfs", "first")
        fetched = link.num_bytes() - before
        return Start(pull_s, import_s, fetched, _import(containerd, image, "overlayfs", "second"))


def lazy_start(link: RunningLink, image: str, *, shares: bool) -> Start:
    """Our snapshotter; `shares`: the start's trace is pushed beside the image."""
    with running_containerd() as containerd, _snapshotter(containerd, shares=shares) as node:
        before = link.num_bytes()
        began = time.monotonic()
        digest = _pull(node, image)
        pull_s = time.monotonic() - began
        import_s = _import(containerd, image, SNAPSHOTTER, "first")
        fetched = link.num_bytes() - before
        second_s = _import(containerd, image, SNAPSHOTTER, "second")  # before the rest is fetched
        pinned = str(Reference.parse(image).at(digest))
        node.control.ask("ready", image=pinned)  # returns when the trace is pushed
        return Start(pull_s, import_s, fetched, second_s)


@contextmanager
def _snapshotter(containerd: RunningContainerd, *, shares: bool) -> Iterator[RunningSnapshotter]:
    inherited = dict(os.environ)  # noqa: TID251 - what children inherit
    said = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PLATFORM_SNAPSHOTTER_SHARE_TRACES": str(shares).lower(),
    }
    with running_snapshotter(containerd, inherited | said) as node:
        until(lambda: bool(node.logged("keeper.ready")), seconds=60, what="layers can be mounted")
        yield node


def _pull(node: RunningSnapshotter, image: str) -> str:
    """As a node agent has it pulled; the digest."""
    containerd = node.containerd
    service = PullService(
        node.state_dir / "pull.sock",
        containerd=containerd.socket,
        namespace=containerd.namespace,
        snapshotter=SNAPSHOTTER,
    )
    return asyncio.run(service.pull(image, lambda fraction: None)).digest


def _import(containerd: RunningContainerd, image: str, snapshotter: str, name: str) -> float:
    """Seconds from the order to run a container to the end of its `import torch`."""
    command = [
        "ctr",
        "--address",
        str(containerd.socket),
        "--namespace",
        containerd.namespace,
        "run",
    ]
    command += ["--rm", "--snapshotter", snapshotter]
    for variable in ENVIRONMENT.items():
        command += ["--env", "=".join(variable)]
    began = time.monotonic()
    with subprocess.Popen(
        [*command, image, name, *in_image(_CODE)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        import_s = time.monotonic() - began
    if said != _DONE or process.returncode:
        sys.exit(f"error: the container ended with {process.returncode}\nhint: {image}")
    return import_s
