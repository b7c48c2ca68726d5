"""A node whose replicas are one stand-in that is up already: it speaks an agent's protocol."""

import asyncio
import time

import httpx

from infra.clock import SystemClock
from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.node import (
    DesiredState,
    NodeRegistration,
    NodeReport,
    ReplicaReport,
)
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung

_NODE = NodeId("stand-in")
_REPORT_S = 2.0
_AGENT_TIMEOUT_S = 90.0


class StandInNode:
    """Reports every replica it is told to run READY after `climb_s`; `ready_at` is the last one's
    time, by `time.perf_counter`."""

    def __init__(self, url: str, key: str, *, port: int, climb_s: float) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=_AGENT_TIMEOUT_S
        )
        self._port = port
        self._climb_s = climb_s
        self._reports: dict[ReplicaId, ReplicaReport] = {}
        self.ready_at = 0.0

    async def register(self) -> None:
        """Introduces itself."""
        clock = SystemClock.start().reading()
        registration = NodeRegistration(
            node_id=_NODE, cpus=64, memory_bytes=256 << 30, clock=clock, started_at=clock.wall
        )
        await self._post("/internal/nodes", registration.model_dump_json())

    async def run(self) -> None:
        """Serves, once it is registered, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(tasks))
                tasks.create_task(self._report_again())
        finally:
            await self._http.aclose()

    async def _watch(self, tasks: asyncio.TaskGroup) -> None:
        version = -1
        while True:
            answer = await self._http.get(
                f"/internal/nodes/{_NODE}/desired", params={"after": version, "wait_s": 30}
            )
            desired = DesiredState.model_validate_json(answer.raise_for_status().content)
            version = desired.version
            wanted = {one.replica_id: one for one in desired.replicas if one.desired == "run"}
            for replica_id, assignment in wanted.items():
                if replica_id not in self._reports:
                    self._reports[replica_id] = ReplicaReport(
                        replica_id=replica_id,
                        revision=assignment.revision,
                        state=ReplicaState.STARTING,
                        from_rung=Rung.RUNTIME,
                    )
                    tasks.create_task(self._climb(replica_id))
            for replica_id in self._reports.keys() - wanted.keys():
                stopped = self._reports.pop(replica_id)
                await self._tell(stopped.model_copy(update={"state": ReplicaState.STOPPED}))

    async def _climb(self, replica_id: ReplicaId) -> None:
        await self._tell(self._reports[replica_id])
        await asyncio.sleep(self._climb_s)
        where = {"state": ReplicaState.READY, "host": "127.0.0.1", "port": self._port}
        ready = self._reports[replica_id] = self._reports[replica_id].model_copy(update=where)
        self.ready_at = time.perf_counter()
        await self._tell(ready)

    async def _report_again(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            await self._tell(*self._reports.values())

    async def _tell(self, *reports: ReplicaReport) -> None:
        report = NodeReport(node_id=_NODE, standby_ready=0, replicas=reports)
        await self._post(f"/internal/nodes/{_NODE}/reports", report.model_dump_json())

    async def _post(self, path: str, content: str) -> None:
        answer = await self._http.post(
            path, content=content, headers={"content-type": "application/json"}
        )
        answer.raise_for_status()
