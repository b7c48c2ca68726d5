import asyncio
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.virtual_time import run_virtual
from worker.engine.fake import FakeEngine
from worker.engine.request import GenerationRequest, Listener, Output, SamplingParams, TokenLogprob
from worker.server.generation import Batch, Generation, merged

SPACIOUS = 1 << 30


def output(text: str, *, is_last: bool = False) -> Output:
    token = TokenLogprob(1, text, text.encode(), -1.0)
    return Output("r", text, (1,), (token,), "stop" if is_last else None)


def test_merged_outputs_lose_nothing() -> None:
    assert merged([output("a"), output("b"), output("c", is_last=True)]) == Output(
        request_id="r",
        text="abc",
        token_ids=(1, 1, 1),
        logprobs=tuple(TokenLogprob(1, text, text.encode(), -1.0) for text in "abc"),
        finish_reason="stop",
    )


delays = st.lists(st.integers(0, 3), min_size=1, max_size=8)


class Pacing(FakeEngine):
    """Choice r-2 has as many outputs as the third list has pauses, and those before them."""

    def __init__(self, choices: list[list[int]]) -> None:
        super().__init__()
        self._choices = choices

    async def _play(self, request: GenerationRequest, listener: Listener) -> None:
        pauses = self._choices[int(request.request_id.removeprefix("r-"))]
        for position, pause in enumerate(pauses):
            await asyncio.sleep(pause)
            listener.hear(output(str(position), is_last=position == len(pauses) - 1))


@settings(deadline=None, max_examples=100)
@given(choices=st.lists(delays, min_size=1, max_size=4), reading=delays)
def test_however_outputs_and_pauses_interleave_every_choice_comes_whole(
    choices: list[list[int]], reading: list[int]
) -> None:
    requests = [
        GenerationRequest(f"r-{index}", (1,), SamplingParams(max_tokens=9))
        for index in range(len(choices))
    ]

    async def read(generation: Generation) -> None:
        for seconds in itertools.cycle(reading):
            generation.pause()
            await asyncio.sleep(seconds)
            generation.resume()
            await asyncio.sleep(1)

    async def story() -> None:
        texts = [""] * len(choices)
        finished: list[int] = []

        def take(batch: Batch) -> None:
            for index, one in batch:
                assert index not in finished
                texts[index] += one.text
                finished.extend([index] if one.is_last else [])

        generation = Generation(Pacing(choices), requests, most_pending_bytes=SPACIOUS)
        pausing = asyncio.create_task(read(generation))
        async with generation:
            await generation.begun()
            take(await generation.pour(take))
        pausing.cancel()
        assert generation.usage.completion_tokens == sum(map(len, choices))
        assert texts == ["".join(map(str, range(len(pauses)))) for pauses in choices]
        assert sorted(finished) == list(range(len(choices)))

    run_virtual(story())
