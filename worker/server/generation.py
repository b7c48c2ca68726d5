"""The choices of one request while the engine works on them, merged into one flow."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from infra.errors import ClientTooSlow
from infra.supervise import TaskSet
from worker.engine.request import Output
from worker.server.envelope import Usage

Batch = list[tuple[int, Output]]

# What an output and one log-probability hold on to, roughly, as Python objects.
_OUTPUT_BYTES = 300
_LOGPROB_BYTES = 250


class Generation:
    """Reads all streams at the engine's pace; hands over what has come since the last look.

    Leaving the context aborts what still runs. `prefixes`, where given, are put before each
    choice's text (echo), with the log-probabilities of the prompt where those were asked for;
    `only_prefixes` leaves out what was generated. What waits to be fetched is bounded by
    `most_pending_bytes`, more or less: a client that reads too slowly ends its own request and
    nobody else's.
    """

    def __init__(
        self,
        streams: Sequence[AsyncGenerator[Output, None]],
        *,
        most_pending_bytes: int,
        prompt_tokens: int = 0,
        choices_a_prompt: int = 1,
        prefixes: Sequence[str] = (),
        only_prefixes: bool = False,
    ) -> None:
        self._streams = streams
        self._prefixes = dict(enumerate(prefixes))
        self._only_prefixes = only_prefixes
        self._most_pending_bytes = most_pending_bytes
        self._pending: dict[int, list[Output]] = {}
        self._pending_bytes = 0
        self._running = len(streams)
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self._tasks = TaskSet()
        self._prompt_tokens = prompt_tokens
        self._choices_a_prompt = choices_a_prompt
        self._completion_tokens = 0
        self._cached_tokens: dict[int, int] = {}  # by choice

    async def __aenter__(self) -> Self:
        for index, stream in enumerate(self._streams):
            self._tasks.start(self._pump(index, stream), name=f"choice-{index}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._tasks.close()

    @property
    def is_finished(self) -> bool:
        """Every choice has ended well and has been fetched."""
        return not self._running and not self._pending

    @property
    def usage(self) -> Usage:
        """So far; of a prompt with several choices the first says what was in the cache."""
        cached = [
            count
            for index, count in self._cached_tokens.items()
            if index % self._choices_a_prompt == 0
        ]
        return Usage(self._prompt_tokens, self._completion_tokens, sum(cached))

    async def next_batch(self) -> Batch:
        """What came since the last call, one output a choice; empty when every choice has ended.

        Waits for at least one. Raises the error that ended any choice, once what came before it
        has been fetched.
        """
        while not self._pending and self._running and self._error is None:
            self._wake.clear()
            await self._wake.wait()
        if self._pending:
            return self._take()
        if self._error is not None:
            raise self._error
        return []

    def _take(self) -> Batch:
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        return [(index, merged(outputs)) for index, outputs in pending.items()]

    async def _pump(self, index: int, stream: AsyncGenerator[Output, None]) -> None:
        try:
            async with aclosing(stream):
                async for output in stream:
                    self._add(index, output)
            self._running -= 1
        except Exception as error:
            self._error = self._error or error
        self._wake.set()

    def _add(self, index: int, output: Output) -> None:
        self._cached_tokens.setdefault(index, output.cached_tokens)
        if self._prefixes and (prefix := self._prefixes.pop(index, None)) is not None:
            generated = _nothing_of(output) if self._only_prefixes else output
            output = merged([_echoed(output, prefix), generated])
        self._completion_tokens += len(output.token_ids)
        self._pending.setdefault(index, []).append(output)
        self._pending_bytes += held_bytes(output)
        if self._pending_bytes > self._most_pending_bytes:
            raise ClientTooSlow("the client reads slower than the model writes, by too much")
        self._wake.set()


def held_bytes(output: Output) -> int:
    """About how much memory an output holds."""
    entries = sum(1 + len(token.top) for token in output.logprobs)
    return _OUTPUT_BYTES + len(output.text) + _LOGPROB_BYTES * entries


def merged(outputs: list[Output]) -> Output:
    """Consecutive outputs of one choice as one."""
    if len(outputs) == 1:
        return outputs[0]
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
