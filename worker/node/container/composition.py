"""Composes the launcher of containers from what the settings name."""

import sys

from infra.containerd.client import Containerd
from infra.sources.node_chunks import share_through
from infra.sources.sources import Sources
from worker.node.clock import NodeClock
from worker.node.container.cdi import read_gpus
from worker.node.container.containerd import ContainerdContainers, ContainerdImages
from worker.node.container.furnishing import Furnishing
from worker.node.container.image import Puller
from worker.node.container.image_keeper import ImageKeepers
from worker.node.container.launcher import ContainerLauncher, Premises
from worker.node.container.pull_program import PullProgram
from worker.node.container.pull_service import PullService
from worker.node.machine import open_files
from worker.settings import NodeSettings, container_environment, pull_environment

CGROUP = "/firstlight"
UNPACKS = "overlayfs"  # containerd's own, which mounts no layer by an index
AWAY_S = 5.0  # containerd, before a call to it has failed


def container_launcher(settings: NodeSettings, clock: NodeClock) -> ContainerLauncher:
    """Containers of `settings.image`; nothing of it asks containerd for anything yet."""
    assert settings.image is not None, "the settings see to it"
    containerd = Containerd(
        settings.containerd, namespace=settings.containerd_namespace, away_s=AWAY_S
    )
    where = {"snapshotter": settings.snapshotter}
    images = ContainerdImages(containerd, **where)
    return ContainerLauncher(
        ContainerdContainers(containerd, node=settings.id, **where),
        ImageKeepers(
            *(settings.image, images, _puller(settings), clock),
            mounts=settings.snapshotter != UNPACKS,
        ),
        Furnishing(
            Sources(plain_http=settings.plain_http, share=share_through(settings.weights_socket)),
            settings.cache_dir,
            clock,
        ),
        Premises(
            settings.containers_dir, CGROUP, container_environment(), read_gpus(), open_files()
        ),
    )


def _puller(settings: NodeSettings) -> Puller:
    if settings.pull_socket is not None:
        return PullService(
            settings.pull_socket,
            containerd=settings.containerd,
            namespace=settings.containerd_namespace,
            snapshotter=settings.snapshotter,
        )
    return PullProgram(
        (
            *(sys.executable, "-m", "snapshotter.main", "pull", "--json"),
            *("--address", str(settings.containerd), "--snapshotter", settings.snapshotter),
        ),
        pull_environment()
        | {"PLATFORM_SNAPSHOTTER_CONTAINERD_NAMESPACE": settings.containerd_namespace},
    )
