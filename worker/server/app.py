"""The replica's server: binds, serves, drains, closes."""

import asyncio

from infra.clock import Clock
from infra.errors import ShuttingDown
from worker.server.defaults import SamplingDefaults
from worker.server.embeddings import EmbeddingService
from worker.server.in_flight import InFlight
from worker.server.listener import Listener
from worker.server.plan import OutputLimits
from worker.server.ports import Engine, Tokenizer
from worker.server.prompts import PromptEncoder
from worker.server.routes import Routes
from worker.server.service import GenerationService, Identity

# The largest body limit a model.yaml may set; the gateway enforces the model's own.
MOST_BODY_BYTES = 64 << 20
# After the deadline of a drain, for the errors to reach the clients.
FLUSH_S = 1.0


class ReplicaServer:
    """OpenAI's chat, completions and embeddings, and function-style invoke, over one engine.

    Every request but `GET /healthz` needs `Authorization: Bearer <token>`. `defaults` hold where a
    request does not say; `max_output_tokens` caps what it may ask for. `listening` is a socket that
    it was given, instead of an address to bind to; it may serve others after it.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        model: str,
        revision: str,
        token: str,
        clock: Clock,
        max_output_tokens: int | None = None,
        defaults: SamplingDefaults = SamplingDefaults(),  # noqa: B008 - frozen value
        most_body_bytes: int = MOST_BODY_BYTES,
        listening: int | None = None,
    ) -> None:
        self._in_flight = InFlight()
        self._encoder = PromptEncoder(tokenizer, context_tokens=engine.context_tokens)
        self._closed = asyncio.Event()
        identity = Identity(model, revision)
        generation = GenerationService(
            engine,
            self._encoder,
            identity=identity,
            limits=OutputLimits(engine.context_tokens, max_output_tokens),
            defaults=defaults,
            clock=clock,
        )
        embeddings = EmbeddingService(engine, self._encoder, identity=identity, clock=clock)
        self.routes = Routes(
            generation,
            embeddings,
            engine,
            self._in_flight,
            token=token,
            most_body_bytes=most_body_bytes,
            clock=clock,
        )
        self._listener = Listener(self.routes, listening)

    @property
    def in_flight(self) -> int:
        """Requests whose answer has not left yet."""
        return len(self._in_flight)

    @property
    def connections(self) -> int:
        """Open connections."""
        return self._listener.connections

    async def bind(self, host: str, port: int = 0) -> int:
        """Serves from now on at a numeric address; returns the port, any free one for 0.

        Where it was given a socket, on that instead; the port is 0 then.
        """
        return await self._listener.bind(host, port)

    async def serve(self) -> None:
        """Returns once the server has been drained or closed."""
        await self._closed.wait()

    async def drain(self, deadline_s: float) -> bool:
        """Takes nothing new and finishes what runs, then closes; whether it finished in time.

        What still runs at the deadline ends with ShuttingDown.
        """
        self._in_flight.is_draining = True
        self._listener.stop_accepting()
        has_finished = await self._is_idle_within(deadline_s)
        if not has_finished:
            self._in_flight.interrupt_all(ShuttingDown("the replica's time to drain is over"))
            await self._is_idle_within(FLUSH_S)
        await self.close()
        return has_finished

    async def close(self) -> None:
        """Ends everything at once: requests are aborted, connections cut. May be repeated."""
        self._in_flight.is_draining = True
        await self._listener.close()
        self._encoder.close()
        self._closed.set()

    async def _is_idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._in_flight.idle()
        except TimeoutError:
            return False
        return True
