"""One generation from a valid request to its last byte."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from infra.clock import Clock
from infra.errors import Invalid, ModelNotFound
from worker.engine.request import GenerationRequest
from worker.server.asked import AnswerWriter, Asked, EventWriter
from worker.server.defaults import SamplingDefaults
from worker.server.envelope import Letterhead
from worker.server.generation import Batch, Generation
from worker.server.plan import Caller, OutputLimits, engine_requests
from worker.server.ports import Engine
from worker.server.prompts import PromptEncoder
from worker.server.responder import Responder
from worker.server.timing import ServerTiming

# A stream may be this far ahead of its client, a whole answer this large.
MOST_PENDING_BYTES = 4 << 20
MOST_ANSWER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """Which revision of which model answers here."""

    model: str
    revision: str

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes when the same seed may give other tokens."""
        return f"fp_{hashlib.sha256(self.revision.encode()).hexdigest()[:10]}"

    def refuse_other(self, model: str | None) -> None:
        """Raises ModelNotFound for a request that names another model."""
        if model not in (None, self.model, self.revision):
            raise ModelNotFound(f"this replica serves {self.model}, not {model}", param="model")


class GenerationService:
    """Tokenises, submits, and writes what comes; knows nothing of HTTP but the Responder."""

    def __init__(
        self,
        engine: Engine,
        encoder: PromptEncoder,
        *,
        identity: Identity,
        limits: OutputLimits,
        defaults: SamplingDefaults,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._identity = identity
        self._fingerprint = identity.fingerprint
        self._limits = limits
        self._defaults = defaults
        self._clock = clock
        self._numbers = itertools.count(1)

    async def serve(
        self,
        asked: Asked,
        request_id: str,
        responder: Responder,
        *,
        arrived: float,
        caller: Caller = Caller(),  # noqa: B008 - frozen value
    ) -> None:
        """Sends the whole response. Raises PlatformError, before or after its head was sent."""
        self._identity.refuse_other(asked.model)
        timing = ServerTiming(self._clock, arrived)
        prompts = await self._encoder.encode(asked.prompts, now=arrived)
        timing.tokenised()
        requests = engine_requests(
            asked,
            prompts,
            # numbered, as a gateway's second try may meet its first, not yet aborted
            request_id=f"{request_id}-{next(self._numbers)}",
            limits=self._limits,
            defaults=self._defaults,
            caller=caller,
        )
        letterhead = Letterhead(
            id=asked.id_prefix + request_id,
            created=int(arrived),
            model=self._identity.model,
            fingerprint=self._fingerprint,
        )
        generation = self._generation(asked, requests, sum(map(len, prompts)), now=arrived)
        if asked.is_streaming:
            await _stream(generation, asked.events(letterhead), responder, timing)
        else:
            writer = asked.answer(letterhead, len(requests))
            await _collect(generation, writer, responder, timing)

    def _generation(
        self,
        asked: Asked,
        requests: Sequence[GenerationRequest],
        prompt_tokens: int,
        *,
        now: float,
    ) -> Generation:
        prefixes = [
            text
            for prompt in (asked.prompts if asked.is_echo else ())
            for text in [self._encoder.text(prompt, now=now)] * asked.n
        ]
        return Generation(
            self._engine,
            requests,
            most_pending_bytes=MOST_PENDING_BYTES if asked.is_streaming else MOST_ANSWER_BYTES,
            prompt_tokens=prompt_tokens,
            choices_a_prompt=asked.n,
            prefixes=prefixes,
            only_prefixes=asked.max_tokens == 0,
        )


async def _stream(
    generation: Generation,
    writer: EventWriter,
    responder: Responder,
    timing: ServerTiming,
) -> None:
    """Sends the head with the first token, then one part a step, however many choices it has."""

    def part(batch: Batch) -> None:
        responder.part(_events(writer, batch))

    async with generation:
        await generation.begun()
        headers = (timing.first_token(), generation.usage.prompt_header)
        await responder.begin_events(generation, *headers)
        rest = await generation.pour(part)
    usage = generation.usage
    await responder.finish(_events(writer, rest) + usage.comment + writer.closing(usage))


def _events(writer: EventWriter, batch: Batch) -> bytes:
    return b"".join(itertools.starmap(writer.delta, batch))


async def _collect(
    generation: Generation,
    writer: AnswerWriter,
    responder: Responder,
    timing: ServerTiming,
) -> None:
    """Sends the whole answer once it is there."""
    kept_bytes = 0

    def keep(batch: Batch) -> None:
        nonlocal kept_bytes
        kept_bytes += sum(writer.add(index, output) for index, output in batch)
        if kept_bytes > MOST_ANSWER_BYTES:
            raise Invalid(
                f"the answer grew over {MOST_ANSWER_BYTES} bytes",
                hint="ask for fewer choices, tokens or log-probabilities, or stream",
            )

    async with generation:
        await generation.begun()
        timing.first_token()
        keep(await generation.pour(keep))
    usage = generation.usage
    headers = (timing.last_token(), usage.prompt_header, usage.completion_header)
    await responder.whole(writer.whole(usage), headers=headers)
