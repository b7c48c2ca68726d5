"""An engine that plays scripts, with AsyncEngine's interface, for tests of what stands on it."""

import asyncio
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from infra.errors import PlatformError, ShuttingDown
from infra.supervise import TaskSet
from worker.engine.request import (
    Embedding,
    EmbeddingRequest,
    FinishReason,
    GenerationRequest,
    Listener,
    Output,
    Request,
    TokenLogprob,
    refuse_too_long,
)
from worker.engine.stats import EngineStats


@dataclass(frozen=True)
class Script:
    """One answer: a piece of text is one token, with the given seconds before each.

    `error` is raised after the pieces, in place of a finish.
    """

    pieces: tuple[str, ...] = ("Hello", ", ", "world")
    first_delay_s: float = 0.0
    delay_s: float = 0.0
    finish_reason: FinishReason = "stop"
    error: PlatformError | None = None
    cached_tokens: int = 0


@dataclass
class FakeEngine:
    """Plays `script` (a value, or a function of the request); keeps what was asked and aborted.

    A prompt's vector comes after `embedding_delay_s` and counts its tokens, those of one id modulo
    `embedding_size` together, scaled to a length of 1.
    """

    script: Script | Callable[[GenerationRequest], Script] = field(default_factory=Script)
    context_tokens: int = 2048
    embedding_size: int = 8
    embedding_delay_s: float = 0.0
    on_failure: Callable[[BaseException], None] | None = None
    submitted: list[GenerationRequest] = field(default_factory=list)
    embedded: list[EmbeddingRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    stats: EngineStats = field(default_factory=EngineStats)
    _ended: PlatformError | None = None
    _playing: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _tasks: TaskSet = field(default_factory=TaskSet)

    def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """From now on `generate` raises ShuttingDown."""
        self._ended = ShuttingDown("the replica is stopping")

    def fail(self, error: PlatformError) -> None:
        """As if the engine's thread had died: what runs fails at its next token."""
        self._ended = error
        if self.on_failure is not None:
            self.on_failure(error)

    async def generate(self, request: GenerationRequest, listener: Listener) -> None:
        """As AsyncEngine.generate."""
        self._check(request)
        self.submitted.append(request)
        self.running.add(request.request_id)
        self._count(prompt_tokens=len(request.prompt_token_ids))
        playing = self._play(request, listener)
        self._playing[request.request_id] = self._tasks.start(playing, name="script")

    def abort(self, request_id: str) -> None:
        """As AsyncEngine.abort."""
        if (playing := self._playing.pop(request_id, None)) is not None:
            playing.cancel()
            self._leave(request_id, is_finished=False)

    async def embed(self, request: EmbeddingRequest) -> Embedding:
        """As AsyncEngine.embed."""
        self._check(request)
        self.embedded.append(request)
        self.running.add(request.request_id)
        self._count(prompt_tokens=len(request.prompt_token_ids))
        is_finished = False
        try:
            await asyncio.sleep(self.embedding_delay_s)
            if self._ended is not None:
                raise self._ended
            is_finished = True
        finally:
            self._leave(request.request_id, is_finished=is_finished)
        counts = [0] * self.embedding_size
        for token_id in request.prompt_token_ids:
            counts[token_id % self.embedding_size] += 1
        return Embedding(array("f", [count / math.hypot(*counts) for count in counts]))

    def _check(self, request: Request) -> None:
        if self._ended is not None:
            raise self._ended
        refuse_too_long(request, context_tokens=self.context_tokens, kv_tokens=self.context_tokens)

    async def _play(self, request: GenerationRequest, listener: Listener) -> None:
        try:
            script = self.script if isinstance(self.script, Script) else self.script(request)
            for output in self._outputs(request, script):
                is_first = output.token_ids == (0,)
                await asyncio.sleep(script.first_delay_s if is_first else script.delay_s)
                if self._ended is not None:
                    raise self._ended
                self._count(generated_tokens=1)
                if output.is_last:
                    self._end(request.request_id)
                listener.hear(output)
            if script.error is not None:
                raise script.error
        except Exception as error:
            self._end(request.request_id)
            listener.fail(error)

    def _outputs(self, request: GenerationRequest, script: Script) -> Iterator[Output]:
        pieces = script.pieces[: request.sampling.max_tokens]
        reason: FinishReason = script.finish_reason
        if len(pieces) < len(script.pieces):
            reason = "length"
        for index, piece in enumerate(pieces):
            is_last = index == len(pieces) - 1 and script.error is None
            yield Output(
                request_id=request.request_id,
                text=piece,
                token_ids=(index,),
                logprobs=_logprobs(index, piece, request.sampling.logprobs),
                finish_reason=reason if is_last else None,
                prompt_logprobs=() if index else _prompt_logprobs(request),
                cached_tokens=0 if index else script.cached_tokens,
            )

    def _end(self, request_id: str) -> None:
        if self._playing.pop(request_id, None) is not None:
            self._leave(request_id, is_finished=True)

    def _leave(self, request_id: str, *, is_finished: bool) -> None:
        self.running.discard(request_id)
        self._count()
        if not is_finished:
            self.aborted.append(request_id)

    def _count(self, *, prompt_tokens: int = 0, generated_tokens: int = 0) -> None:
        self.stats = replace(
            self.stats,
            running=len(self.running),
            steps=self.stats.steps + generated_tokens,
            prompt_tokens=self.stats.prompt_tokens + prompt_tokens,
            generated_tokens=self.stats.generated_tokens + generated_tokens,
        )


def _prompt_logprobs(request: GenerationRequest) -> tuple[TokenLogprob, ...]:
    if request.sampling.prompt_logprobs is None:
        return ()
    first, *others = request.prompt_token_ids
    return (
        TokenLogprob(first, chr(first), chr(first).encode(), math.nan),
        *(TokenLogprob(each, chr(each), chr(each).encode(), -0.25) for each in others),
    )


def _logprobs(token_id: int, text: str, count: int | None) -> tuple[TokenLogprob, ...]:
    if count is None:
        return ()
    chosen = TokenLogprob(token_id, text, text.encode(), -0.5)
    alternatives = tuple(
        TokenLogprob(1000 + rank, f"alternative{rank}", f"alternative{rank}".encode(), -1.0 - rank)
        for rank in range(1, count)
    )
    return (replace(chosen, top=((chosen, *alternatives) if count else ())),)
