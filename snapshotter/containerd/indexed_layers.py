"""Layers that have an index beside their image, mounted by the file system of layers."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock, Thread
from typing import Final

import structlog

from infra.clock import Clock
from infra.contracts.stage import Moved
from infra.errors import PlatformError, StoreUnavailable
from infra.registry.client import Registry
from infra.registry.reference import Reference
from snapshotter.containerd.index_files import IndexFiles
from snapshotter.containerd.layers import ContainerStart, FoundLayer, WantedLayer
from snapshotter.fs.control_client import ControlClient
from snapshotter.fs.layer_mounts import LayerMounts
from snapshotter.index.image_index import ImageIndex, find_index
from snapshotter.trace.files import TraceFiles
from snapshotter.trace.shared import fetch_traces

log = structlog.get_logger()

_MOST_KNOWN: Final = 64
_KNOWN_S: Final = 60.0  # one pull asks for each layer of an image in turn


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
        self._registry = registry
        self._files = files
        self._traces = traces
        self._mounts = mounts
        self._control = control
        self._can_mount = can_mount
        self._clock = clock
        self._lock = Lock()  # guards what is known
        self._known: OrderedDict[Reference, tuple[float, ImageIndex]] = OrderedDict()

    def find(self, wanted: WantedLayer) -> FoundLayer | None:
        self._check_keeper()
        image = wanted.image
        beside = self._beside(image)
        described = None if beside is None else beside.layers.get(wanted.layer)
        if beside is None or described is None:
            return None
        if not self._files.has(described.digest):
            packed = beside.packed(self._registry, wanted.layer)
            assert packed is not None, "it is described"
            self._files.keep(described.digest, packed)
        spec = {"image": str(image), "layer": wanted.layer, "index": described.digest}
        return FoundLayer(described.digest, spec)

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

    def _beside(self, image: Reference) -> ImageIndex | None:
        now = self._clock.now()
        with self._lock:
            known_at, known = self._known.get(image, (0.0, None))
        if known is not None and now - known_at < _KNOWN_S:
            return known
        found = find_index(self._registry, image, str(image.digest))
        if found is not None:
            self._expect_start(image, found)
            with self._lock:
                self._known[image] = now, found
                while len(self._known) > _MOST_KNOWN:
                    self._known.popitem(last=False)
        return found

    def _expect_start(self, image: Reference, beside: ImageIndex) -> None:
        """What is pulled is about to start: as it did elsewhere, if that is known."""
        digest = str(image.digest)
        try:
            if self._traces.find(digest) is None:
                for trace in fetch_traces(self._registry, image, digest):
                    self._traces.keep(trace)
        except PlatformError as error:
            log.warning("trace.not_fetched", image=str(image), error=error.detail)
        self._announce(str(image), [described.digest for described in beside.layers.values()])
