"""Starts of images: recorded until ready, replayed the next time, the rest filled in afterwards."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from threading import Event, Lock, Thread
from typing import Final

import structlog

from infra.registry.reference import Reference
from snapshotter.blob.blob import Blob
from snapshotter.blob.flight import Priority
from snapshotter.trace.files import TraceFiles
from snapshotter.trace.trace import Recording, Trace

log = structlog.get_logger()

_QUIET_S: Final = 20.0
_MOST_S: Final = 600.0
_LOOK_EVERY_S: Final = 1.0

OnNewTrace = Callable[[Reference, Trace], None]


def ignore_trace(image: Reference, trace: Trace) -> None:
    """Nobody else is told."""


class Starts:
    """Images by the digest of their manifest, layers by that of their index. Any thread may use it.

    A start ends when somebody says that it is ready, or when it has touched nothing new for a
    while. Only then are the other chunks of the image fetched, in the background.
    """

    def __init__(
        self,
        files: TraceFiles,
        *,
        on_new_trace: OnNewTrace = ignore_trace,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_new_trace` hears of the first trace of an image's program, on our thread."""
        self._files = files
        self._on_new_trace = on_new_trace
        self._now = now
        self._lock = Lock()  # guards everything below
        self._open: dict[str, Blob] = {}
        self._images: dict[str, Reference] = {}
        self._layers: dict[str, tuple[str, ...]] = {}  # of each image
        self._recordings: dict[str, Recording] = {}
        self._to_replay: dict[str, Trace] = {}
        self._is_closed = Event()
        self._watch = Thread(target=self._look, name="starts", daemon=True)

    def watch(self) -> None:
        """From now on, starts that nobody calls ready end by themselves."""
        self._watch.start()

    def opened(self, layer: str, blob: Blob) -> None:
        """The layer can be read now."""
        with self._lock:
            self._open[layer] = blob
        self._replay()

    def closed(self, layer: str) -> None:
        """The layer is not read any more."""
        with self._lock:
            self._open.pop(layer, None)
            for image, layers in list(self._layers.items()):
                if not any(each in self._open for each in layers):
                    del self._layers[image], self._images[image]
                    self._recordings.pop(image, None)
                    self._to_replay.pop(image, None)

    def touched(self, layer: str, chunk: int) -> None:
        """Somebody reads the chunk."""
        if not self._recordings:  # nearly always: costs nothing
            return
        with self._lock:
            for recording in self._recordings.values():
                recording.touch(layer, chunk, now=self._now())

    def starting(
        self, image: Reference, layers: Sequence[str] = (), entrypoint: str | None = None
    ) -> None:
        """A program of the pinned image is about to start; its layers need to be told once.

        Without an entrypoint it is the image's own, and the newest trace is replayed, whose ever.
        """
        digest = str(image.digest)
        trace = self._files.find(digest, entrypoint)
        with self._lock:
            self._images[digest] = image
            known = self._layers.setdefault(digest, tuple(layers))
            under_way = self._recordings.get(digest)
            if under_way is None or under_way.entrypoint != (entrypoint or ""):
                recording = Recording(digest, entrypoint or "", known, now=self._now())
                self._recordings[digest] = recording
            if trace is not None:
                self._to_replay[digest] = trace
        self._replay()

    def ready(self, image: str) -> None:
        """The program that was starting has started."""
        with self._lock:
            recording = self._recordings.pop(image, None)
            name = self._images.get(image)
            layers = self._layers.get(image, ())
            blobs = [self._open[layer] for layer in layers if layer in self._open]
        if recording is not None and name is not None:
            self._keep(name, recording.trace())
        for blob in blobs:
            blob.fill()

    def close(self) -> None:
        """Ends the watch."""
        self._is_closed.set()
        self._watch.join()

    def _keep(self, image: Reference, trace: Trace) -> None:
        if not trace.touches:
            return
        is_new = self._files.find(trace.image, trace.entrypoint) is None
        self._files.keep(trace)
        log.info("start.recorded", image=trace.image, touches=len(trace.touches))
        if is_new:
            self._on_new_trace(image, trace)

    def _replay(self) -> None:
        """Asks for what traces say, each once all layers are open that it speaks of."""
        with self._lock:
            traces = [trace for trace in self._to_replay.values() if self._can_replay(trace)]
            for trace in traces:
                del self._to_replay[trace.image]
            blobs = dict(self._open)
        for trace in traces:
            log.info("start.replayed", image=trace.image, touches=len(trace.touches))
            replay(trace, blobs)

    def _can_replay(self, trace: Trace) -> bool:
        return all(touch.layer in self._open for touch in trace.touches)

    def _look(self) -> None:
        while not self._is_closed.wait(_LOOK_EVERY_S):
            try:
                self.end_quiet()
            except Exception:
                log.exception("start.not_ended")

    def end_quiet(self) -> None:
        """Takes for ready what has touched nothing new for a while."""
        now = self._now()
        with self._lock:
            quiet = [
                image
                for image, recording in self._recordings.items()
                if recording.is_quiet(now=now, quiet_s=_QUIET_S, most_s=_MOST_S)
            ]
        for image in quiet:
            self.ready(image)


def replay(trace: Trace, blobs: Mapping[str, Blob]) -> None:
    """Asks for the chunks of a trace in its order."""
    for layer, touches in groupby(trace.touches, key=lambda touch: touch.layer):
        blobs[layer].prefetch([touch.chunk for touch in touches], Priority.TRACE)
