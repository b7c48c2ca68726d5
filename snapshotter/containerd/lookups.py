"""What lies beside images in their registries: looked up once, everything of an image at once."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, Thread
from typing import Final

import structlog

from infra.clock import Clock
from infra.errors import PlatformError
from infra.registry.client import Registry
from infra.registry.manifest import Descriptor
from infra.registry.reference import Reference
from snapshotter.containerd.index_files import IndexFiles
from snapshotter.containerd.layers import FoundLayer
from snapshotter.index.image_index import ARTIFACT_TYPE, ImageIndex, find_index, read_index
from snapshotter.registry.referrers import listed_beside, of_type
from snapshotter.trace.files import TraceFiles
from snapshotter.trace.shared import fetch_traces

log = structlog.get_logger()

_MOST_KNOWN: Final = 64
_KNOWN_S: Final = 60.0  # one pull asks for each layer of an image in turn
_MOST_THREADS: Final = 8

OnLayer = Callable[[FoundLayer], None]
OnImage = Callable[[Reference, ImageIndex], None]


class Lookup:
    """One image's. Its index is looked for in a thread, and what that names is then fetched in
    several; who waits for one thing does not wait for the others.
    """

    def __init__(self, image: Reference, pin: str | None, *, since: float) -> None:
        self.image = image
        self.pin = pin
        self.since = since
        self.index: Future[ImageIndex | None] = Future()
        self.layers: dict[str, Future[FoundLayer]] = {}  # by layer digest, once there is an index

    def layer(self, digest: str) -> FoundLayer | None:
        """The layer, its index on this disk; None where it has none. Raises PlatformError."""
        self.index.result()
        fetched = self.layers.get(digest)
        return None if fetched is None else fetched.result()

    def is_of_use(self, files: IndexFiles) -> bool:
        """Whether it goes on, or has found what is still here: what was not there may be by now."""
        if not self.index.done():
            return True
        if self.index.exception() is not None or self.index.result() is None:
            return False
        done = [layer for layer in self.layers.values() if layer.done()]
        return all(it.exception() is None and files.has(it.result().name) for it in done)


class Lookups:
    """`on_image` hears when an image's index is found, and again when a trace of a start of it was;
    `on_layer` of each layer whose index is here. Both are called in threads, and raise nothing.
    """

    def __init__(
        self,
        registry: Registry,
        files: IndexFiles,
        traces: TraceFiles,
        *,
        on_image: OnImage,
        on_layer: OnLayer,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._files = files
        self._traces = traces
        self._on_image = on_image
        self._on_layer = on_layer
        self._clock = clock
        self._lock = Lock()  # guards what is known
        self._known: OrderedDict[tuple[Reference, str | None], Lookup] = OrderedDict()

    def of(self, image: Reference, pin: str | None = None) -> Lookup:
        """The look-up of an image that is pinned to its manifest, begun if need be.

        `pin`: the digest of the only index that it may have; None: that which is listed beside it.
        """
        key = image, pin
        now = self._clock.now()
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.is_of_use(self._files) and now - known.since < _KNOWN_S:
                return known
            lookup = self._known[key] = Lookup(image, pin, since=now)
            self._known.move_to_end(key)
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        Thread(target=self._run, args=(lookup,), name="lookup", daemon=True).start()
        return lookup

    def _run(self, lookup: Lookup) -> None:
        image, manifest = lookup.image, str(lookup.image.digest)
        with ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="lookup") as pool:
            try:
                sizing = pool.submit(self._sizes, image)
                listed = listed_beside(self._registry, image, manifest)
                is_traced = pool.submit(self._bring_traces, image, listed)
                index = self._index(lookup, listed)
                sizes = sizing.result()
            except Exception as error:
                lookup.index.set_exception(error)
                return
            if index is None:
                lookup.index.set_result(None)
                return
            for layer in index.layers.keys() & sizes.keys():
                fetched = pool.submit(self._bring_layer, lookup, index, layer, sizes[layer])
                fetched.add_done_callback(self._hear)
                lookup.layers[layer] = fetched
            lookup.index.set_result(index)
            self._on_image(image, index)
            if is_traced.result():
                self._on_image(image, index)

    def _index(self, lookup: Lookup, listed: list[Descriptor]) -> ImageIndex | None:
        """That which is pinned, if one is: what others have put beside the image is of no use."""
        image, manifest = lookup.image, str(lookup.image.digest)
        if lookup.pin is None:
            return find_index(self._registry, image, manifest, listed)
        others = {it.digest for it in of_type(listed, ARTIFACT_TYPE)} - {lookup.pin}
        if others:
            log.warning("index.refused", image=str(image), pin=lookup.pin, found=sorted(others)[:3])
        return read_index(self._registry, image, manifest, lookup.pin)

    def _sizes(self, image: Reference) -> dict[str, int]:
        """Of the image's layers, by digest: an index claims no more than its layer holds."""
        listed = self._registry.manifest(image).content.get("layers")
        layers = [Descriptor.parse(each) for each in listed] if isinstance(listed, list) else []
        return {layer.digest: layer.size for layer in layers}

    def _bring_layer(self, lookup: Lookup, index: ImageIndex, layer: str, size: int) -> FoundLayer:
        name = index.layers[layer].digest
        if not self._files.has(name):
            packed = index.packed(self._registry, layer)
            assert packed is not None, "it is described"
            self._files.keep(name, packed)
        spec = {"image": str(index.image), "layer": layer, "index": name, "size": size}
        if lookup.pin is not None:
            spec["pin"] = lookup.pin
        return FoundLayer(name, spec)

    def _hear(self, fetched: Future[FoundLayer]) -> None:
        if fetched.exception() is None:
            self._on_layer(fetched.result())

    def _bring_traces(self, image: Reference, listed: list[Descriptor]) -> bool:
        """Whether there is a new one of a start elsewhere."""
        manifest = str(image.digest)
        if self._traces.find(manifest) is not None:
            return False
        try:
            traces = fetch_traces(self._registry, image, manifest, listed)
        except PlatformError as error:  # a start without its trace is slower, and that is all
            log.warning("trace.not_fetched", image=str(image), error=error.detail)
            return False
        for trace in traces:
            self._traces.keep(trace)
        return bool(traces)
