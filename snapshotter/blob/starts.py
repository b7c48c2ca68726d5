"""Starts of images: recorded until ready, replayed the next time, the rest filled in afterwards."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from threading import Event, Lock, Thread
from typing import Final

import structlog

from infra.contracts.stage import Came, Moved
from infra.registry.reference import Reference
from snapshotter.blob.blob import Blob
from snapshotter.blob.flight import Flight, Priority
from snapshotter.blob.tally import Tallies
from snapshotter.trace.files import TraceFiles
from snapshotter.trace.trace import Recording, Trace

log = structlog.get_logger()

_QUIET_S: Final = 20.0
_MOST_S: Final = 600.0
_LOOK_EVERY_S: Final = 1.0
_SAME_START_S: Final = 5.0

_Program = tuple[str, str]  # digest of its image, entrypoint: "" where nobody says what it is
OnNewTrace = Callable[[Reference, Trace], None]


def ignore_trace(image: Reference, trace: Trace) -> None:
    """Nobody else is told."""


class Starts:
    """Images by the digest of their manifest, layers by that of their index. Any thread may use it.

    A start ends when it is said to be ready; one of which nobody said what it runs, when it has
    touched nothing new for a while. Only then, and while the image has no other that goes on, are
    the other chunks of the image fetched, in the background.
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
        self._recordings: dict[_Program, Recording] = {}
        self._to_replay: dict[_Program, Trace] = {}
        self._tallies = Tallies(same_s=_SAME_START_S, most_s=_MOST_S)
        self._is_closed = Event()
        self._watch = Thread(target=self._look, name="starts", daemon=True)

    def watch(self) -> None:
        """From now on, starts that nobody calls ready end by themselves."""
        self._watch.start()

    def opened(self, layer: str, blob: Blob) -> None:
        """The layer can be read now."""
        with self._lock:
            self._open[layer] = blob
            self._tallies.open(layer, now=self._now())
        self._replay()

    def closed(self, layer: str) -> None:
        """The layer is not read any more."""
        with self._lock:
            self._open.pop(layer, None)
            for image, layers in list(self._layers.items()):
                if not any(each in self._open for each in layers):
                    del self._layers[image], self._images[image]
                    for program in _programs_of(image, [*self._recordings, *self._to_replay]):
                        self._recordings.pop(program, None)
                        self._to_replay.pop(program, None)

    def touched(self, layer: str, chunk: int) -> None:
        """Somebody reads the chunk."""
        if not (self._recordings or self._tallies):  # nearly always: costs nothing
            return
        with self._lock:
            if layer in self._open:
                self._tallies.touch(layer, self._open[layer].ref.table[chunk])
            for recording in self._recordings.values():
                recording.touch(layer, chunk, now=self._now())

    def landed(self, layer: str, flight: Flight) -> None:
        """A chunk came to this node. What is fetched for nobody counts for no start."""
        if self._tallies and flight.priority is not Priority.BACKGROUND:
            source, asked_at = flight.came_from or "", flight.asked_at
            with self._lock:
                self._tallies.land(layer, flight.chunk, source, asked_at=asked_at, now=self._now())

    def starting(
        self,
        image: Reference,
        layers: Sequence[str] = (),
        entrypoint: str | None = None,
        container: str | None = None,
    ) -> None:
        """A program of the pinned image is about to start; its layers need to be told once.

        Without an entrypoint it is the image's own, and the newest trace is replayed, whose ever.
        Without a container the image has been pulled for one.
        """
        digest = str(image.digest)
        trace = self._files.find(digest, entrypoint)
        with self._lock:
            self._images[digest] = image
            known = self._layers.setdefault(digest, tuple(layers))
            if container is None:
                self._tallies.pull(digest, known, now=self._now())
            else:
                self._tallies.start(container, digest, known, now=self._now())
            self._record(digest, entrypoint)
            if trace is not None:
                self._to_replay[trace.image, trace.entrypoint] = trace
        self._replay()

    def _record(self, image: str, entrypoint: str | None) -> None:
        """Joins a start of that program. A start of an unknown one is, as long as any of the image
        goes on, taken for that: it may be what was pulled, or looks at what runs.
        """
        under_way = _programs_of(image, self._recordings)
        if entrypoint is not None:
            self._recordings.pop((image, ""), None)
        elif under_way:
            return
        program = image, entrypoint or ""
        if program not in under_way:
            layers = self._layers[image]
            self._recordings[program] = Recording(*program, layers, now=self._now())

    def read(self, container: str) -> Moved | None:
        """What the container has read until now; None for one that does not start."""
        with self._lock:
            tally = self._tallies.find(container)
            if tally is None:
                return None
            came, seconds = tally.came(), tally.seconds()
        sources = tuple(Came(source=name, bytes=size) for name, size in came.most_common() if size)
        return Moved(came=sources, seconds=seconds)

    def started(self, container: str) -> None:
        """What it reads from now on is no start's."""
        with self._lock:
            self._tallies.end(container)

    def ready(self, image: str, entrypoint: str | None = None) -> None:
        """The program that was starting has started; without a name, all of the image."""
        with self._lock:
            ready = _programs_of(image, self._recordings)
            if entrypoint is not None:
                ready = [program for program in ready if program == (image, entrypoint)]
            recordings = [self._recordings.pop(program) for program in ready]
            name = self._images.get(image)
            goes_on = bool(_programs_of(image, self._recordings))
            layers = () if goes_on else self._layers.get(image, ())
            blobs = [self._open[layer] for layer in layers if layer in self._open]
        for recording in recordings:
            if name is not None:
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
        facts = {"entrypoint": trace.entrypoint, "touches": len(trace.touches)}
        log.info("start.recorded", image=trace.image, **facts)
        if is_new:
            self._on_new_trace(image, trace)

    def _replay(self) -> None:
        """Asks for what traces say, each once all layers are open that it speaks of."""
        with self._lock:
            traces = [trace for trace in self._to_replay.values() if self._can_replay(trace)]
            for trace in traces:
                del self._to_replay[trace.image, trace.entrypoint]
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
        """Takes for ready what has touched nothing new for a while, or was never called it."""
        now = self._now()
        with self._lock:
            quiet = [
                program
                for program, recording in self._recordings.items()
                if recording.is_over(now=now, quiet_s=_QUIET_S, most_s=_MOST_S)
            ]
            self._tallies.forget_old(now=now)
        for image, entrypoint in quiet:
            self.ready(image, entrypoint)


def _programs_of(image: str, programs: Iterable[_Program]) -> list[_Program]:
    return [program for program in programs if program[0] == image]


def replay(trace: Trace, blobs: Mapping[str, Blob]) -> None:
    """Asks for the chunks of a trace in its order."""
    for layer, touches in groupby(trace.touches, key=lambda touch: touch.layer):
        blobs[layer].prefetch([touch.chunk for touch in touches], Priority.TRACE)
