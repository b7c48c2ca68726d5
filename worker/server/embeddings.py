"""`POST /v1/embeddings` in OpenAI's words."""

import asyncio
import base64
import itertools
import math
import sys
from array import array
from collections.abc import Sequence

import orjson

from infra.clock import Clock
from infra.contracts.embeddings import EmbeddingsRequest
from infra.contracts.generation import JsonObject
from infra.errors import Invalid
from infra.generation_requests import read_object
from worker.engine.request import EmbeddingRequest
from worker.server.asked import written_prompt
from worker.server.envelope import Usage
from worker.server.plan import Caller
from worker.server.ports import Engine
from worker.server.prompts import TO_EMBED, PromptEncoder
from worker.server.responder import Responder
from worker.server.service import MOST_ANSWER_BYTES, Identity
from worker.server.timing import ServerTiming

_NUMBER_BYTES = 16  # as JSON, with a comma: 9 digits give a float32 back exactly
_BASE64_NUMBER_BYTES = 6


class EmbeddingService:
    """Tokenises, has each input embedded, and writes the vectors in the order of the inputs."""

    def __init__(
        self, engine: Engine, encoder: PromptEncoder, *, identity: Identity, clock: Clock
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._identity = identity
        self._clock = clock
        self._numbers = itertools.count(1)

    async def serve(
        self,
        data: JsonObject,
        request_id: str,
        responder: Responder,
        *,
        arrived: float,
        caller: Caller,
    ) -> None:
        """Sends the whole response. Raises PlatformError before its head was sent."""
        asked = read_object(EmbeddingsRequest, data)
        self._identity.refuse_other(asked.model)
        self._refuse_size(asked)
        timing = ServerTiming(self._clock, arrived)
        prompts = [written_prompt(one) for one in asked.inputs]
        encoded = await self._encoder.encode(prompts, now=arrived, purpose=TO_EMBED)
        timing.tokenised()
        # numbered, as a gateway's second try may meet its first, not yet aborted
        name = f"{request_id}-{next(self._numbers)}"
        written = await self._written(
            asked,
            [
                EmbeddingRequest(
                    f"{name}-e{index}",
                    token_ids,
                    priority=asked.priority or 0,
                    tenant=caller.tenant,
                    deadline=caller.deadline,
                )
                for index, token_ids in enumerate(encoded)
            ],
        )
        usage = Usage(sum(map(len, encoded)), 0)
        await responder.whole(
            self._whole(written, usage),
            headers=(timing.first_token(), usage.prompt_header, usage.completion_header),
        )

    def _refuse_size(self, asked: EmbeddingsRequest) -> None:
        size = self._engine.embedding_size
        if asked.dimensions is not None and asked.dimensions > size:
            raise Invalid(
                f"dimensions is {asked.dimensions}; the model's vectors have {size}",
                param="dimensions",
                limit=size,
            )
        is_base64 = asked.encoding_format == "base64"
        number_bytes = _BASE64_NUMBER_BYTES if is_base64 else _NUMBER_BYTES
        if len(asked.inputs) * (asked.dimensions or size) * number_bytes > MOST_ANSWER_BYTES:
            raise Invalid(
                f"the answer would have over {MOST_ANSWER_BYTES} bytes",
                hint="send fewer inputs at a time, or ask for fewer dimensions, or for base64",
                param="input",
            )

    async def _written(
        self, asked: EmbeddingsRequest, requests: Sequence[EmbeddingRequest]
    ) -> list[bytes]:
        """Each vector as JSON; written as it comes, between the engine's steps."""
        write = _base64 if asked.encoding_format == "base64" else _numbers

        async def written(request: EmbeddingRequest) -> bytes:
            vector = (await self._engine.embed(request)).vector
            return write(_shortened(vector, asked.dimensions))

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(written(request)) for request in requests]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    def _whole(self, written: Sequence[bytes], usage: Usage) -> bytes:
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % each
            for each in enumerate(written)
        )
        return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (
            data,
            orjson.dumps(self._identity.model),
            orjson.dumps(
                {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
            ),
        )


def _shortened(vector: "array[float]", dimensions: int | None) -> "array[float]":
    """The first numbers, scaled to a length of 1 again (Kusupati et al. 2022)."""
    if dimensions is None or dimensions == len(vector):
        return vector
    first = vector[:dimensions]
    length = math.hypot(*first) or 1.0  # all may be zero
    return array("f", [number / length for number in first])


def _numbers(vector: "array[float]") -> bytes:
    return b"[%b]" % b",".join([b"%.9g" % number for number in vector])


def _base64(vector: "array[float]") -> bytes:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return b'"%b"' % base64.b64encode(vector)
