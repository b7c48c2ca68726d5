"""Everything about jobs, wired: what callers use, and the loops that do the work."""

from collections.abc import Callable, Coroutine
from typing import Any

from control_plane.queue.answers import Answers
from control_plane.queue.collector import Collector
from control_plane.queue.courier import Courier
from control_plane.queue.dispatcher import AnsweredListener, Dispatcher
from control_plane.queue.executor import Executor
from control_plane.queue.meters import JobMeters
from control_plane.queue.service import Jobs
from control_plane.queue.store import JobStore
from control_plane.queue.webhook_client import WebhookClient
from infra.clock import Clock
from infra.metrics import Metrics
from infra.objectstore.port import ObjectStore


class JobPlane:
    """`owner` names this process among the consumers of the store."""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        executor: Executor,
        *,
        owner: str,
        clock: Clock,
        metrics: Metrics,
        is_leading: Callable[[], bool],
    ) -> None:
        self._store = store
        self._clock = clock
        self._is_leading = is_leading
        self._meters = JobMeters.on(metrics)
        self._couriers: list[Courier] = []
        answers = Answers(store, objects)
        self._collector = Collector(answers, is_leading=is_leading)
        self.dispatcher = Dispatcher(
            store,
            answers,
            executor,
            self._meters,
            owner=owner,
            clock=clock,
            is_leading=is_leading,
        )
        self.jobs = Jobs(
            store, answers, clock=clock, waits=self.dispatcher.waits, abort=self.dispatcher.abort
        )

    def send_webhooks(self, client: WebhookClient, *, secret: str) -> None:
        """Callers that named an address are told, too."""
        courier = Courier(
            self._store,
            client,
            self._meters,
            secret=secret,
            clock=self._clock,
            is_leading=self._is_leading,
        )
        self.dispatcher.subscribe_over(courier.poke)
        self._couriers.append(courier)

    def bill(self, listener: AnsweredListener) -> None:
        """Calls back once for each job that was answered, however often it was executed."""
        self.dispatcher.subscribe_answered(listener)

    def loops(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What has to run, by name."""
        loops = [("jobs", self.dispatcher.run()), ("answers", self._collector.run())]
        return loops + [("webhooks", courier.run()) for courier in self._couriers]
