"""A small random Llama as a Hugging Face folder, and what tests need to drive it."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from infra.contracts.model_spec import EngineSettings
from infra.errors import PlatformError
from worker.engine.completion import Completion, Tokenizer
from worker.engine.engine import Engine
from worker.engine.event import Event, NewToken
from worker.engine.request import GenerationRequest, Listener, Output, SamplingParams
from worker.kernels.port import Span
from worker.models.causal_model import CausalModel
from worker.models.config import read_config
from worker.models.registry import build_model
from worker.weights.loader import open_weights

EOS = 0

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 160,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv_heads = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        linears = {
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv_heads, hidden),
            "self_attn.v_proj": (kv_heads, hidden),
            "self_attn.o_proj": (hidden, heads),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for name, shape in linears.items():
            shapes[f"{prefix}.{name}.weight"] = shape
            if config.get("mlp_bias" if "mlp" in name else "attention_bias"):
                shapes[f"{prefix}.{name}.bias"] = shape[:1]
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    return shapes


def random_tensors(config: dict[str, Any], *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config["torch_dtype"])
    return {
        name: (
            torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1)
            + name.endswith("norm.weight")
        ).to(dtype)
        for name, shape in tensor_shapes(config).items()
    }


def write_model(folder: Path, **changes: Any) -> Path:
    """Writes config and weights; the folder."""
    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_tensors(config), folder / "model.safetensors")
    return folder


def load_model(folder: Path, settings: EngineSettings | None = None) -> CausalModel:
    return build_model(
        read_config(folder),
        open_weights(folder, lambda fraction: None),
        settings or EngineSettings(),
    )


@dataclass(frozen=True)
class LetterStream:
    tokenizer: "LetterTokenizer"

    def push(self, token_id: int) -> str:
        return self.tokenizer.token_bytes(token_id).decode()

    def flush(self) -> str:
        return ""


@dataclass(frozen=True)
class LetterTokenizer:
    """Token 97 is `a`: every token one character."""

    eos_token_ids: frozenset[int] = frozenset()

    def stream(self) -> LetterStream:
        return LetterStream(self)

    @property
    def special_token_ids(self) -> frozenset[int]:
        return self.eos_token_ids

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(map(ord, text))

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()


def greedy_alone(
    model: CausalModel, prompt: Sequence[int], count: int, *, eos: frozenset[int] = frozenset()
) -> list[int]:
    """The oracle: one sequence, its prompt in one piece, then token by token."""
    blocks = range((len(prompt) + count) // 16 + 1)
    cache = model.allocate_cache(num_blocks=len(blocks), block_size=16)
    token_ids, first = list(prompt), 0
    while len(token_ids) < len(prompt) + count:
        new = token_ids[first:]
        logits = model.logits(new, [Span(first, len(new), blocks)], [len(new) - 1], cache)
        first = len(token_ids)
        token_ids.append(int(logits[0].float().argmax()))
        if token_ids[-1] in eos:
            break
    return token_ids[len(prompt) :]


class Collected:
    """One answer, made of what the engine tells of it."""

    def __init__(self, request: GenerationRequest, tokenizer: Tokenizer) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.outputs: list[Output] = []
        self.error: PlatformError | None = None
        self.num_dropped = 0  # tokens after its stop string
        self._completion = Completion(request, tokenizer)

    @property
    def is_stopped(self) -> bool:
        return bool(self.outputs) and self.outputs[-1].is_last

    def take(self, event: Event) -> None:
        if self.is_stopped:
            self.num_dropped += isinstance(event, NewToken)
            return
        try:
            output = self._completion.take(event)
        except PlatformError as error:
            self.error = error
            return
        if output is not None:
            self.text += output.text
            self.token_ids += output.token_ids
            self.outputs.append(output)


def request(
    request_id: str, prompt: Sequence[int], max_tokens: int = 8, **sampling: Any
) -> GenerationRequest:
    params = {"temperature": 0.0} | sampling
    return GenerationRequest(request_id, tuple(prompt), SamplingParams(max_tokens, **params))


def make_engine(
    model: CausalModel,
    tokenizer: LetterTokenizer | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Engine:
    """An engine over a cache of 64 blocks, unless told otherwise."""
    engine = Engine(
        model,
        tokenizer or LetterTokenizer(),
        EngineSettings(**({"kv_cache_tokens": 1024} | settings)),
        clock,
    )
    engine.warm()
    return engine


def run(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    *,
    every: int = 0,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Collected]:
    """Submits all at once, or one every so many steps, and steps until nothing is left."""
    spelling = tokenizer or LetterTokenizer()
    collected = {each.request_id: Collected(each, spelling) for each in requests}
    waiting = list(requests)
    steps = 0
    while waiting or engine.has_work():
        while waiting and (every == 0 or steps % every == 0 or not engine.has_work()):
            asked = waiting.pop(0)
            guide = asked.sampling.guide
            engine.check(asked)
            engine.submit(asked, None if guide is None else engine.compile(guide))
            if every:
                break
        for event in engine.step():
            answer = collected[event.request_id]
            answer.take(event)
            if answer.is_stopped:
                engine.abort(event.request_id)
        engine.check_integrity()
        steps += 1
    return collected


class Generates(Protocol):
    async def generate(self, request: GenerationRequest, listener: Listener) -> None: ...
    def abort(self, request_id: str) -> None: ...


class Heard:
    """Keeps what is told of a request for who reads it later."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[Output | Exception] = asyncio.Queue()

    def hear(self, output: Output) -> None:
        self.news.put_nowait(output)

    def fail(self, error: Exception) -> None:
        self.news.put_nowait(error)


async def outputs_of(engine: Generates, request: GenerationRequest) -> AsyncGenerator[Output, None]:
    """What is heard of the request, as it comes; closing it aborts what still runs."""
    heard = Heard()
    await engine.generate(request, heard)
    try:
        while True:
            news = await heard.news.get()
            if isinstance(news, Exception):
                raise news
            yield news
            if news.is_last:
                return
    finally:
        engine.abort(request.request_id)
