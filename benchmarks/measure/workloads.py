"""What is measured of every engine, with the same prompts in the same round."""

import asyncio
import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.client import Answer, Endpoint, RequestFailed, complete
from worker.evaluation.texts import read_texts
from worker.tokenizer.tokenizer import Tokenizer

OUTPUT_TOKENS = 128
DECODE_CONTEXT = 250
LONG_PROMPT = 1500
PREFIX_TOKENS = 1027
_UNIQUE = 4  # random tokens in front, so that no prefix cache knows a prompt


class Prompts:
    """Windows over the shipped texts; equal for equal seeds, and never met before."""

    def __init__(self, model: Path) -> None:
        tokenizer = Tokenizer.load(model)
        documents = [tokenizer.encode(text, add_special_tokens=False) for text in read_texts()]
        self._tokens = list(itertools.chain(*documents))
        self._vocabulary = tokenizer.vocabulary

    def prompt(self, length: int, *, seed: str) -> list[int]:
        dice = random.Random(seed)
        first = [dice.randrange(100, self._vocabulary) for _ in range(_UNIQUE)]
        offset = dice.randrange(len(self._tokens))
        tokens = itertools.islice(itertools.cycle(self._tokens), offset, None)
        return first + list(itertools.islice(tokens, length - _UNIQUE))

    def prompts(self, count: int, length: int, *, seed: str) -> list[list[int]]:
        return [self.prompt(length, seed=f"{seed}/{index}") for index in range(count)]


@dataclass(frozen=True, slots=True)
class Gaps:
    """Between the events of streams that run while long prompts arrive."""

    median_s: float
    p99_s: float
    worst_s: float


async def decode(endpoint: Endpoint, prompts: Prompts, seed: str) -> float:
    """Seconds a token of one stream."""
    prompt = prompts.prompt(DECODE_CONTEXT, seed=seed)
    return _whole(await complete(endpoint, prompt, max_tokens=OUTPUT_TOKENS)).tpot_s


async def throughput(
    endpoint: Endpoint, prompts: Prompts, seed: str, *, streams: int, prompt_tokens: int
) -> float:
    """Output tokens a second of all streams, from the first request to the last token."""
    many = prompts.prompts(streams, prompt_tokens, seed=seed)
    answers = await asyncio.gather(
        *(complete(endpoint, prompt, max_tokens=OUTPUT_TOKENS) for prompt in many)
    )
    took = max(a.ended for a in answers) - min(a.started for a in answers)
    return sum(_whole(answer).tokens for answer in answers) / took


async def prefill(endpoint: Endpoint, prompts: Prompts, seed: str) -> float:
    """Prompt tokens a second until the first token is here."""
    answer = await complete(endpoint, prompts.prompt(LONG_PROMPT, seed=seed), max_tokens=2)
    return LONG_PROMPT / answer.ttft_s


async def prefix(endpoint: Endpoint, prompts: Prompts, seed: str) -> tuple[float, float]:
    """Seconds to the first token of a prompt, then of one that shares its beginning."""
    shared = prompts.prompt(PREFIX_TOKENS - 8, seed=seed)
    ends = prompts.prompts(2, 8, seed=f"{seed}/end")
    cold = await complete(endpoint, shared + ends[0], max_tokens=2)
    warm = await complete(endpoint, shared + ends[1], max_tokens=2)
    return cold.ttft_s, warm.ttft_s


async def gaps(endpoint: Endpoint, prompts: Prompts, seed: str) -> Gaps:
    """Four streams run; three long prompts arrive one after another."""
    running = [
        asyncio.create_task(complete(endpoint, prompt, max_tokens=2 * OUTPUT_TOKENS))
        for prompt in prompts.prompts(4, 128, seed=seed)
    ]
    await asyncio.sleep(0.5)
    for index in range(3):
        prompt = prompts.prompt(LONG_PROMPT, seed=f"{seed}/long/{index}")
        await complete(endpoint, prompt, max_tokens=2)
    answers = await asyncio.gather(*running)
    every = sorted(gap for answer in answers for gap in answer.gaps_s)
    return Gaps(statistics.median(every), percentile(every, 0.99), every[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the ordered values does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _whole(answer: Answer) -> Answer:
    if answer.tokens < 2:
        raise RequestFailed(f"{answer.tokens} tokens only")
    return answer
