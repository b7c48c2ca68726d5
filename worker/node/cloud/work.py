"""What the agent does for a machine's lifecycle: a worker once, a session while it serves."""

import asyncio

from infra.contracts.node import DesiredState, Leaving
from infra.supervise import TaskSet
from worker.node.agent import Agent
from worker.node.cloud.port import Notice
from worker.node.session import Session

_NOTHING = DesiredState(version=0, standby=0, replicas=())


class AgentWork:
    """See the port `Work` of the lifecycle; `tasks` owns the session while it runs."""

    def __init__(self, agent: Agent, session: Session, tasks: TaskSet) -> None:
        self._agent = agent
        self._session = session
        self._tasks = tasks
        self._running: asyncio.Task[None] | None = None

    def warm(self) -> None:
        """One worker is started and parked: its image comes, and what it imports is read once.

        A volume that was made of a snapshot brings each block when it is read first, so the next
        start is spared that even where the memory is lost meanwhile.
        """
        self._agent.apply(_NOTHING.model_copy(update={"standby": 1}))

    @property
    def is_warm(self) -> bool:
        return self._agent.standby_ready() > 0

    def serve(self) -> None:
        self._session.announce(None)
        if self._running is None:
            self._running = self._tasks.start(self._session.run(), name="node.session")

    @property
    def is_serving(self) -> bool:
        return self._session.is_registered

    def announce(self, notice: Notice) -> None:
        self._session.announce(Leaving(reason=notice.reason, at=notice.at))

    @property
    def is_idle(self) -> bool:
        return not self._agent.has_replicas

    async def leave(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        running.cancel()
        await asyncio.wait((running,))
        self._agent.apply(_NOTHING)
        await self._session.say_goodbye()
