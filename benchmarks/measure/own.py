"""What is asked of our engine alone: guidance, memory, and first tokens out of nothing."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from benchmarks.cold import cold, first_token
from benchmarks.engine_peers.ours import engine_settings, inherited, our_replica
from benchmarks.engine_peers.servers import Running
from benchmarks.measure.client import Answer, RequestFailed, chat, complete
from benchmarks.measure.report import OURS, Results
from benchmarks.measure.weights import ModelFacts
from benchmarks.measure.workloads import Prompts, throughput
from tests.support.platform import RunningPlatform, running_platform
from worker.evaluation.texts import read_texts

OwnSection = Callable[[Path, ModelFacts, str, Results], Coroutine[None, None, None]]

_ROUNDS = 5
_MEMORY_STREAMS, _MEMORY_KV_TOKENS = 16, 8192
_SETTLED_S = 8.0  # until a replica has written its packed weights
_GUIDED_TOKENS = _FREE_TOKENS = 128
_QUESTION = "Describe ten cities: the name, the country and a sentence about each."
_SCHEMA = {
    "type": "object",
    "properties": {
        "cities": {
            "type": "array",
            "minItems": 10,
            "items": {
                "type": "object",
                "properties": {key: {"type": "string"} for key in ("name", "country", "sentence")},
                "required": ["name", "country", "sentence"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["cities"],
    "additionalProperties": False,
}


async def guidance(model: Path, _: ModelFacts, number_format: str, results: Results) -> None:
    """Time a token of an answer held to a schema, over that of a free one of the same length.

    With guesses, which a schema's fixed texts make right more often, and without.
    """
    plainly = engine_settings(number_format, speculation="none")
    async with (
        our_replica(number_format, model, engine_settings(number_format)) as guessing,
        our_replica(number_format, model, plainly) as plain,
    ):
        for round_ in range(_ROUNDS + 1):
            for metric, replica in (("guided/cost", guessing), ("guided/cost/plain", plain)):
                cost = await _cost_of_a_schema(replica)
                if round_ > 0:  # the first compiled the schema
                    results.add(metric, number_format, OURS, cost)


async def _cost_of_a_schema(replica: Running) -> float:
    form = {"type": "json_schema", "json_schema": {"name": "cities", "schema": _SCHEMA}}
    free = await chat(replica.endpoint, _QUESTION, max_tokens=_GUIDED_TOKENS)
    guided = await chat(
        replica.endpoint, _QUESTION, max_tokens=_GUIDED_TOKENS, response_format=form
    )
    return _is_guided(guided).tpot_s / free.tpot_s


def _is_guided(answer: Answer) -> Answer:
    if not answer.text.lstrip().startswith("{") or answer.tokens < _GUIDED_TOKENS // 2:
        raise RequestFailed(f"no JSON of that schema: {answer.text[:60]!r}")
    return answer


async def speculation(model: Path, _: ModelFacts, number_format: str, results: Results) -> None:
    """Speed with guesses over that without: n-gram lookup, and a draft model.

    No smaller model of the family is at hand: the draft is the model's own weights in 4 bits, which
    is a draft worth having for bfloat16, and none for 4 bits, where it can only rest.
    """
    texts = read_texts()
    copying = [f"{text}\n\nThe same text once more:\n\n{text[:60]}" for text in texts]
    plainly = engine_settings(number_format, speculation="none")
    drafting = engine_settings(number_format, speculation="draft", draft_source=model.as_uri())
    async with (
        our_replica(number_format, model, plainly) as plain,
        our_replica(number_format, model, engine_settings(number_format)) as looking_up,
        our_replica(number_format, model, drafting) as drafted,
    ):

        async def compare(way: str, replica: Running, prompt: str, **sampling: float) -> None:
            tpots = [
                (await complete(each.endpoint, prompt, max_tokens=_FREE_TOKENS, **sampling)).tpot_s
                for each in (plain, replica)
            ]
            results.add(way, number_format, OURS, tpots[0] / tpots[1])

        for number, (text, copied) in enumerate(zip(texts, copying, strict=True)):
            # a small model's greedy prose soon repeats itself: that would be copying too
            free = {"temperature": 0.8, "seed": number}
            beginning = text[: len(text) // 2]
            await compare("speculation/copying", looking_up, copied)
            await compare("speculation/elsewhere", looking_up, beginning, **free)
            await compare("draft/greedy", drafted, beginning)
            await compare("draft/sampled", drafted, beginning, **free)


async def memory(model: Path, facts: ModelFacts, number_format: str, results: Results) -> None:
    """Bytes beyond weights and a KV cache that was used to its end."""
    settings = engine_settings(number_format, kv_cache_tokens=_MEMORY_KV_TOKENS)
    prompts = Prompts(model)
    async with our_replica(number_format, model, settings) as replica:
        rounds = _MEMORY_KV_TOKENS // (_MEMORY_STREAMS * 256) + 1
        for number in range(rounds):
            seed = f"memory/{number}"
            await throughput(
                replica.endpoint, prompts, seed, streams=_MEMORY_STREAMS, prompt_tokens=128
            )
        used = replica.pss_bytes()
    needed = facts.our_weight_bytes(number_format) + _MEMORY_KV_TOKENS * facts.kv_bytes_per_token
    results.add("memory/excess", number_format, OURS, used - needed)


async def cold_starts(model: Path, _: ModelFacts, number_format: str, results: Results) -> None:
    """Request to first token through the whole platform at zero replicas."""
    for way, standby in (("fork", 1), ("spawn", 0)):
        samples = await asyncio.to_thread(_first_tokens, model, number_format, standby)
        for sample in samples:
            results.add(f"coldstart/{way}", number_format, OURS, sample)


def _first_tokens(model: Path, number_format: str, standby: int) -> list[float]:
    engine = engine_settings(number_format).model_dump(exclude_defaults=True)
    with running_platform(inherited()) as platform:
        platform.deploy(
            "bench", model, engine=engine, scaling={"grace": 0.5, "standby": standby, "sleep": 0}
        )
        prepare = platform.until_standby if standby else lambda: None
        prepare()
        _settle(platform)
        return [cold(platform, "bench", prepare).ttft_s for _ in range(_ROUNDS)]


def _settle(platform: RunningPlatform) -> None:
    """Keeps the first replica awake until it has packed its weights for those after it."""
    deadline = time.monotonic() + _SETTLED_S
    while time.monotonic() < deadline:
        first_token(platform, "bench")
        time.sleep(0.1)  # noqa: TID251 - real processes keep real time


OWN_SECTIONS: dict[str, OwnSection] = {
    "guidance": guidance,
    "speculation": speculation,
    "memory": memory,
    "coldstart": cold_starts,
}
