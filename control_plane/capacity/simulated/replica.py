"""The process of a replica on a simulated machine, which does what its script says."""

import asyncio
from collections.abc import Callable

from control_plane.capacity.simulated.script import Climbing, Script
from infra.clock import Clock
from infra.contracts.node import Failure, ReplicaAssignment, ReplicaReport
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage, StageProgress, StageTiming


class SimulatedReplica:
    """One replica from its start to its end; `tell` hears of every change of its report."""

    def __init__(
        self,
        assignment: ReplicaAssignment,
        report: ReplicaReport,
        *,
        port: int,
        clock: Clock,
        tell: Callable[["SimulatedReplica"], None],
    ) -> None:
        self.assignment = assignment
        self.report = report
        self.task: asyncio.Task[None] | None = None
        self._port = port
        self._clock = clock
        self._tell = tell
        self._drain = asyncio.Event()
        if assignment.desired == "drain":
            self._drain.set()

    @property
    def is_over(self) -> bool:
        return self.report.state in {ReplicaState.STOPPED, ReplicaState.FAILED}

    async def live(self, script: Script, *, spawn_s: float) -> None:
        """Climbs and serves; its runtime takes `spawn_s` longer than its script says."""
        for place, climbing in enumerate(script.stages):
            if script.hangs and place == (script.fails_after or 0):
                await asyncio.Event().wait()
            if script.fails_after == place and not script.hangs:
                self.end(ReplicaState.FAILED, script.failure or _silent_death())
                return
            extra_s = spawn_s if climbing.stage is Stage.RUNTIME else 0.0
            await self._climb(climbing, climbing.seconds + extra_s)
        if script.fails_after == len(script.stages):
            self.end(ReplicaState.FAILED, script.failure or _silent_death())
            return
        await self.serve(script)

    async def serve(self, script: Script) -> None:
        """Is READY until it is drained, or its script ends it."""
        self._update(state=ReplicaState.READY, host="127.0.0.1", port=self._port, progress=None)
        try:
            async with asyncio.timeout(script.lives_s):
                await self._drain.wait()
        except TimeoutError:
            self.end(ReplicaState.FAILED, _silent_death())
            return
        self._update(state=ReplicaState.DRAINING)
        await asyncio.sleep(min(script.drain_s, self.assignment.drain_deadline_s))
        self.end(ReplicaState.STOPPED, None)

    def drain(self, assignment: ReplicaAssignment) -> None:
        """It is told to finish and exit; may be repeated."""
        self.assignment = assignment
        self._drain.set()

    def kill(self) -> None:
        """Ends its process, whatever that is doing; it says nothing of it."""
        if self.task is not None:
            self.task.cancel()

    def end(self, state: ReplicaState, failure: Failure | None) -> None:
        """It is over."""
        self._update(state=state, failure=failure)

    async def _climb(self, climbing: Climbing, seconds: float) -> None:
        began_at = self._clock.now()
        for step in range(climbing.steps):
            fraction = step / climbing.steps
            self._update(progress=StageProgress(stage=climbing.stage, fraction=fraction))
            await asyncio.sleep(seconds / climbing.steps)
        timing = StageTiming(
            stage=climbing.stage,
            started_at=began_at,
            seconds=self._clock.now() - began_at,
            bytes=climbing.bytes,
            source=climbing.source,
        )
        self._update(stages=(*self.report.stages, timing))

    def _update(self, **changes: object) -> None:
        self.report = self.report.model_copy(update=changes)
        self._tell(self)


def _silent_death() -> Failure:
    return Failure(code="replica-lost", detail="exited without a word", is_permanent=False)
