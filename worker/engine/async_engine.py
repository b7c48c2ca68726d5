"""The engine behind an event loop: a thread steps it, and here its tokens become text."""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from infra.errors import Invalid, PlatformError, ReplicaFailed, ShuttingDown
from worker.engine.completion import Completion, Tokenizer
from worker.engine.event import Embedded, Event, Failure
from worker.engine.guided import Matcher
from worker.engine.request import (
    Embedding,
    EmbeddingRequest,
    GenerationRequest,
    Guide,
    Listener,
    Request,
)
from worker.engine.stats import EngineStats

log = structlog.get_logger()

COMPILE_S = 10.0  # for a guide, among others that wait


class StepEngine(Protocol):
    """The synchronous engine, used by one thread.

    `check`, `compile`, `context_tokens` and `embedding_size` may be used by any.
    """

    @property
    def context_tokens(self) -> int: ...
    @property
    def embedding_size(self) -> int: ...
    def check(self, request: Request) -> None: ...
    def compile(self, guide: Guide) -> Matcher: ...
    def submit(self, request: GenerationRequest, matcher: Matcher | None = None) -> None: ...
    def embed(self, request: EmbeddingRequest) -> None: ...
    def abort(self, request_id: str) -> None: ...
    def has_work(self) -> bool: ...
    def step(self) -> Sequence[Event]: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Submit:
    request: GenerationRequest
    matcher: Matcher | None


@dataclass(frozen=True, slots=True)
class _Embed:
    request: EmbeddingRequest


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Command = _Submit | _Embed | _Abort | _Stop


class AsyncEngine:
    """Owns the engine's thread. All methods belong to the event loop that called `start`.

    A step's events reach the loop with one wake-up, and become outputs there, each told at once:
    the thread spells no text, looks for no stop strings and waits for nobody.

    `on_failure` fires once, on the loop, when the thread dies of an error; whatever ran fails with
    ReplicaFailed then, and from then on `generate` raises it.
    """

    def __init__(
        self,
        engine: StepEngine,
        tokenizer: Tokenizer,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.on_failure = on_failure
        self._engine = engine
        self._tokenizer = tokenizer
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._hearers: dict[str, Callable[[Event], None]] = {}
        self._stats = engine.stats()
        self._ended: Callable[[], PlatformError] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._compilers = ThreadPoolExecutor(1, "guides")

    @property
    def context_tokens(self) -> int:
        """Prompt plus output tokens a request may have."""
        return self._engine.context_tokens

    @property
    def embedding_size(self) -> int:
        """Numbers that a prompt's vector has."""
        return self._engine.embedding_size

    @property
    def stats(self) -> EngineStats:
        """As of the last step."""
        return self._stats

    def start(self) -> None:
        """Starts the engine's thread; events go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stops after the current step and gives the KV cache back. May be repeated.

        What still runs fails with ShuttingDown.
        """
        self._end(partial(ShuttingDown, "the replica is stopping"))
        self._inbox.put(_Stop())
        self._compilers.shutdown(wait=False, cancel_futures=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._engine.close()

    async def generate(self, request: GenerationRequest, listener: Listener) -> None:
        """Begins it; the listener hears every token until the last, or the error that ended it.

        Raises ContextLengthExceeded for a request that can never run, and Invalid where its guide
        does not compile.
        """
        self._refuse(request)
        matcher = await self._compiled(request.sampling.guide)
        if self._ended is not None:
            raise self._ended()
        completion = Completion(request, self._tokenizer)
        hear = partial(self._hear, completion, listener)
        self._enter(request.request_id, _Submit(request, matcher), hear)

    async def embed(self, request: EmbeddingRequest) -> Embedding:
        """The prompt's vector. Raises as `generate` does or what ended it; cancelling aborts it."""
        self._refuse(request)
        told: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._enter(request.request_id, _Embed(request), partial(self._tell, told))
        try:
            event = await told
        finally:
            self.abort(request.request_id)
        if isinstance(event, Failure):
            raise event.error
        assert isinstance(event, Embedded), "nothing else is told of it"
        return event.embedding

    def abort(self, request_id: str) -> None:
        """Ends it within a step, if it runs; nothing is heard of it any more."""
        if self._hearers.pop(request_id, None) is not None:
            self._inbox.put(_Abort(request_id))

    def _refuse(self, request: Request) -> None:
        if self._ended is not None:
            raise self._ended()
        self._engine.check(request)

    def _enter(
        self, request_id: str, command: _Submit | _Embed, hear: Callable[[Event], None]
    ) -> None:
        if request_id in self._hearers:
            raise ValueError(f"request id {request_id!r} is in flight already")
        self._hearers[request_id] = hear
        self._inbox.put(command)

    async def _compiled(self, guide: Guide | None) -> Matcher | None:
        if guide is None or self._ended is not None:
            return None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(COMPILE_S):
                return await loop.run_in_executor(self._compilers, self._engine.compile, guide)
        except TimeoutError as error:
            raise Invalid(
                f"what should guide the answer takes over {COMPILE_S:g} s to compile"
            ) from error

    # The engine's thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take_commands():
                events = self._engine.step()
                self._post(partial(self._deliver, events, self._engine.stats()))
        except BaseException as error:
            log.exception("engine.failed")
            self._post(partial(self._fail, error))

    def _take_commands(self) -> bool:
        """Applies every queued command, waiting for one when idle; False: stop."""
        while True:
            try:
                command = self._inbox.get(block=not self._engine.has_work())
            except queue.Empty:
                return True
            match command:
                case _Submit(request, matcher):
                    self._engine.submit(request, matcher)
                case _Embed(request):
                    self._engine.embed(request)
                case _Abort(request_id):
                    self._engine.abort(request_id)
                    self._post(partial(self._deliver, (), self._engine.stats()))
                case _Stop():
                    return False

    def _post(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop has closed: nobody listens any more
            self._inbox.put(_Stop())

    # Back on the loop ---------------------------------------------------------------------

    def _deliver(self, events: Sequence[Event], stats: EngineStats) -> None:
        self._stats = stats
        hearers = self._hearers
        for event in events:
            if (hear := hearers.get(event.request_id)) is not None:
                hear(event)

    def _hear(self, completion: Completion, listener: Listener, event: Event) -> None:
        """A fault in one answer ends that answer only."""
        try:
            output = completion.take(event)
            if output is None:
                return
            if output.finish_reason is not None:
                self._leave(event)
            listener.hear(output)
        except Exception as error:
            self._leave(event)
            listener.fail(error)

    def _tell(self, told: asyncio.Future[Event], event: Event) -> None:
        self._leave(event)
        if not told.done():  # who waited was cancelled
            told.set_result(event)

    def _leave(self, event: Event) -> None:
        """Its request ends here, of which the engine knows if it said so."""
        if event.is_last:
            self._hearers.pop(event.request_id, None)
        else:
            self.abort(event.request_id)

    def _fail(self, error: BaseException) -> None:
        detail = f"the engine died: {type(error).__name__}: {error}"
        self._end(partial(ReplicaFailed, detail))
        if self.on_failure is not None:
            self.on_failure(error)

    def _end(self, error: Callable[[], PlatformError]) -> None:
        if self._ended is None:
            self._ended = error
        for request_id, hear in tuple(self._hearers.items()):
            hear(Failure(request_id, error()))
