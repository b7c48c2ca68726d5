"""The choices of one request while the engine works on them, merged into one flow."""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from infra.errors import ClientTooSlow
from worker.engine.request import GenerationRequest, Output
from worker.server.envelope import Usage
from worker.server.ports import Engine

Batch = list[tuple[int, Output]]

# What an output and one log-probability hold on to, roughly, as Python objects.
_OUTPUT_BYTES = 300
_LOGPROB_BYTES = 250


class Generation:
    """Hears all choices at the engine's pace; hands over once a step what came of them.

    Leaving the context aborts what still runs. `prefixes`, where given, are put before each
    choice's text (echo), with the log-probabilities of the prompt where those were asked for;
    `only_prefixes` leaves out what was generated. What waits to be handed over is bounded by
    `most_pending_bytes`, more or less: a client that reads too slowly ends its own request and
    nobody else's.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[GenerationRequest],
        *,
        most_pending_bytes: int,
        prompt_tokens: int = 0,
        choices_a_prompt: int = 1,
        prefixes: Sequence[str] = (),
        only_prefixes: bool = False,
    ) -> None:
        self._engine = engine
        self._requests = requests
        self._prefixes = dict(enumerate(prefixes))
        self._only_prefixes = only_prefixes
        self._most_pending_bytes = most_pending_bytes
        self._pending: dict[int, list[Output]] = {}
        self._pending_bytes = 0
        self._running = len(requests)
        self._error: Exception | None = None
        self._take: Callable[[Batch], None] | None = None  # nobody takes yet, or any more
        self._is_paused = False
        self._is_due = False  # at the end of this turn of the loop
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._prompt_tokens = prompt_tokens
        self._choices_a_prompt = choices_a_prompt
        self._completion_tokens = 0
        self._cached_tokens: dict[int, int] = {}  # by choice

    async def __aenter__(self) -> Self:
        try:
            for index, request in enumerate(self._requests):
                await self._engine.generate(request, _Choice(self, index))
        except BaseException:
            self._abort()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._take = None
        self._abort()

    @property
    def usage(self) -> Usage:
        """So far; of a prompt with several choices the first says what was in the cache."""
        cached = [
            count
            for index, count in self._cached_tokens.items()
            if index % self._choices_a_prompt == 0
        ]
        return Usage(self._prompt_tokens, self._completion_tokens, sum(cached))

    async def begun(self) -> None:
        """Waits for the first output; raises the error that ended a choice before any had one."""
        await self._news.wait()
        if self._error is not None and not self._pending:
            raise self._error

    async def pour(self, take: Callable[[Batch], None]) -> Batch:
        """Hands over what comes, one output a choice, until every choice has ended.

        Returns what came last. Raises the error that ended a choice, once what came before it has
        been handed over, or what `take` raised.
        """
        self._take = take
        self._news.clear()
        self._flush()
        await self._news.wait()
        rest = self._batch()
        if self._error is None:
            return rest
        if rest:
            take(rest)
        raise self._error

    def pause(self) -> None:
        """Hands nothing over for now; what comes meanwhile is merged."""
        self._is_paused = True

    def resume(self) -> None:
        """Goes on handing over."""
        self._is_paused = False
        self._flush()

    def hear(self, index: int, output: Output) -> None:
        """What one token added to a choice."""
        if index not in self._cached_tokens:
            output = self._first(index, output)
        self._completion_tokens += len(output.token_ids)
        if output.finish_reason is not None:
            self._running -= 1
        if (outputs := self._pending.get(index)) is None:
            self._pending[index] = [output]
        else:
            outputs.append(output)
        self._pending_bytes += held_bytes(output)
        if self._pending_bytes > self._most_pending_bytes:
            slow = ClientTooSlow("the client reads slower than the model writes, by too much")
            self.fail(slow)
            self._abort()
        elif not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def fail(self, error: Exception) -> None:
        """A choice ended with an error, which ends all."""
        self._error = self._error or error
        self._news.set()

    def _first(self, index: int, output: Output) -> Output:
        self._cached_tokens[index] = output.cached_tokens
        if (prefix := self._prefixes.get(index)) is None:
            return output
        generated = _nothing_of(output) if self._only_prefixes else output
        return merged([_echoed(output, prefix), generated])

    def _flush(self) -> None:
        self._is_due = False
        if self._take is None or self._error is not None or not self._running:
            self._news.set()
        elif self._pending and not self._is_paused:
            try:
                self._take(self._batch())
            except Exception as error:
                self.fail(error)

    def _batch(self) -> Batch:
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        return [
            (index, outputs[0] if len(outputs) == 1 else merged(outputs))
            for index, outputs in pending.items()
        ]

    def _abort(self) -> None:
        for request in self._requests:
            self._engine.abort(request.request_id)


class _Choice:
    """What the engine tells of one choice."""

    __slots__ = ("_generation", "_index")

    def __init__(self, generation: Generation, index: int) -> None:
        self._generation = generation
        self._index = index

    def hear(self, output: Output) -> None:
        self._generation.hear(self._index, output)

    def fail(self, error: Exception) -> None:
        self._generation.fail(error)


def held_bytes(output: Output) -> int:
    """About how much memory an output holds."""
    if not output.logprobs:
        return _OUTPUT_BYTES + len(output.text)
    entries = sum(1 + len(token.top) for token in output.logprobs)
    return _OUTPUT_BYTES + len(output.text) + _LOGPROB_BYTES * entries


def merged(outputs: list[Output]) -> Output:
    """Consecutive outputs of one choice as one."""
    return Output(
        request_id=outputs[0].request_id,
        text="".join(output.text for output in outputs),
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        logprobs=tuple(token for output in outputs for token in output.logprobs),
        finish_reason=outputs[-1].finish_reason,
    )


def _echoed(output: Output, prefix: str) -> Output:
    return Output(output.request_id, prefix, (), output.prompt_logprobs, None)


def _nothing_of(output: Output) -> Output:
    """The end of an answer of no tokens."""
    return Output(output.request_id, "", (), (), "length")
