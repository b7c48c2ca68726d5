import asyncio
from collections.abc import AsyncGenerator

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.virtual_time import run_virtual
from worker.engine.request import Output, TokenLogprob
from worker.server.generation import Generation, merged

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


@settings(deadline=None, max_examples=100)
@given(choices=st.lists(delays, min_size=1, max_size=4), reading=delays)
def test_however_outputs_and_reads_interleave_every_choice_comes_whole(
    choices: list[list[int]], reading: list[int]
) -> None:
    async def stream(pauses: list[int]) -> AsyncGenerator[Output, None]:
        for position, pause in enumerate(pauses):
            await asyncio.sleep(pause)
            yield output(str(position), is_last=position == len(pauses) - 1)

    async def story() -> None:
        texts = [""] * len(choices)
        finished: list[int] = []
        looks = 0
        streams = [stream(pauses) for pauses in choices]
        async with Generation(streams, most_pending_bytes=SPACIOUS) as generation:
            while batch := await generation.next_batch():
                for index, one in batch:
                    assert index not in finished
                    texts[index] += one.text
                    finished += [index] if one.is_last else []
                await asyncio.sleep(reading[looks % len(reading)])
                looks += 1
            assert generation.is_finished
            assert generation.usage.completion_tokens == sum(map(len, choices))
        assert texts == ["".join(map(str, range(len(pauses)))) for pauses in choices]
        assert sorted(finished) == list(range(len(choices)))

    run_virtual(story())
