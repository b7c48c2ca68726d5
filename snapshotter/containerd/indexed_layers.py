"""Layers that have an index beside their image, mounted by the file system of layers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

import structlog

from infra.clock import Clock
from infra.contracts.stage import Moved
from infra.errors import PlatformError, StoreUnavailable
from infra.registry.client import Registry
from infra.registry.reference import Reference
from snapshotter.containerd.index_files import IndexFiles
from snapshotter.containerd.layers import ContainerStart, FoundLayer, WantedLayer
from snapshotter.containerd.lookups import Lookups
from snapshotter.fs.control_client import ControlClient
from snapshotter.fs.layer_mounts import LayerMounts
from snapshotter.index.image_index import ImageIndex
from snapshotter.trace.files import TraceFiles

log = structlog.get_logger()


class IndexedLayers:
    """See the port Layers."""

    def __init__(
        self,
        registry: Registry,
        files: IndexFiles,
        traces: TraceFiles,
        mounts: LayerMounts,
        control: ControlClient,
        can_mount: Callable[[], bool],
        *,
        clock: Clock,
    ) -> None:
        """`can_mount` waits while that is being found out."""
        self._files = files
        self._mounts = mounts
        self._control = control
        self._can_mount = can_mount
        self._lookups = Lookups(
            registry,
            files,
            traces,
            on_image=self._expect_start,
            on_layer=self._expect_layer,
            clock=clock,
        )

    def expect(self, image: Reference, pin: str | None) -> None:
        """Layers of the image, which is pinned to its manifest, are about to be looked for, by that
        index if one is pinned, too."""
        self._lookups.of(image, pin)

    def find(self, wanted: WantedLayer) -> FoundLayer | None:
        self._check_keeper()
        found = self._lookups.of(wanted.image, wanted.index).layer(wanted.layer)
        if found is not None:
            self._files.sync(found.name)  # a restart mounts it without network
        return found

    def mount(self, layer: FoundLayer) -> Path:
        self._check_keeper()  # what is mounted may be a dead keeper's
        return self._mounts.mount(layer.name, layer.spec)

    def unmount(self, name: str) -> None:
        self._mounts.unmount(name)
        self._files.remove(name)

    def kept_bytes(self, name: str) -> int:
        try:
            return int(self._control.ask("kept_bytes", name=name))
        except PlatformError:
            return 0  # how much a layer takes is no reason to fail

    def starting(self, start: ContainerStart) -> None:
        program = {"entrypoint": start.entrypoint, "container": start.container}
        self._announce(start.image, start.layers, **program)

    def _announce(self, image: str, layers: Sequence[str], **program: str | None) -> None:
        try:
            self._control.ask("starting", image=image, layers=list(layers), **program)
        except PlatformError as error:  # a start without its trace is slower, and that is all
            log.warning("start.not_announced", image=image, error=error.detail)

    def read(self, start: ContainerStart) -> Moved | None:
        try:
            read = self._control.ask("read", container=start.container)
        except PlatformError as error:  # an account is no reason to fail
            log.warning("start.not_accounted", image=start.image, error=error.detail)
            return None
        return None if read is None else Moved.model_validate(read)

    def ready(self, start: ContainerStart) -> None:
        """In a thread: the trace may be pushed, and containerd's database waits for our answer."""
        Thread(target=self._say_ready, args=(start,), name="ready", daemon=True).start()

    def _say_ready(self, start: ContainerStart) -> None:
        program = {"entrypoint": start.entrypoint, "container": start.container}
        try:
            self._control.ask("ready", image=start.image, **program)
        except PlatformError as error:  # then its start is over when it has lasted too long
            log.warning("start.not_ended", image=start.image, error=error.detail)

    def _check_keeper(self) -> None:
        if not self._can_mount():
            raise StoreUnavailable("the keeper of mounts does not run")

    def _expect_start(self, image: Reference, index: ImageIndex) -> None:
        """What is pulled is about to start: as it did elsewhere, if that is known."""
        self._announce(str(image), [described.digest for described in index.layers.values()])

    def _expect_layer(self, layer: FoundLayer) -> None:
        """It will be mounted in a moment: then its file system is made already."""
        try:
            if self._can_mount():
                self._control.ask("expect", name=layer.name, spec=layer.spec)
        except PlatformError as error:  # who mounts it hears of it
            log.info("layer.not_expected", layer=layer.name, error=error.detail)
