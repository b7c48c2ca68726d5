"""Our own replica as the node agent runs it, spoken to directly on its port."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.engine_peers.servers import Running
from benchmarks.measure.client import Endpoint
from infra.contracts.base import ModelName, ReplicaId
from infra.contracts.model_spec import EngineSettings
from infra.contracts.revision import ReplicaState
from infra.sources.file import FileSource
from tests.node.makers import assignment, desired
from tests.node.real_node import REAL, real_node

NAME = "firstlight"
QUANTIZATION = {"bf16": "none", "int8": "int8", "int4": "int4"}


def inherited() -> dict[str, str]:
    """The environment without settings of ours that would leak in."""
    return {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - what children inherit
        if not name.startswith("PLATFORM_")
    }


def engine_settings(number_format: str, **more: object) -> EngineSettings:
    """What differs from the defaults."""
    return EngineSettings.model_validate({"quantization": QUANTIZATION[number_format], **more})


@asynccontextmanager
async def our_replica(
    number_format: str, model: Path, settings: EngineSettings
) -> AsyncIterator[Running]:
    """A replica that was spawned and is ready; one before it has packed the weights."""
    draft = settings.draft_source
    wanted = assignment("second").model_copy(
        update={
            "model": ModelName("bench"),
            "source": FileSource().resolve(model.as_uri())[0],
            "draft_source": None if draft is None else FileSource().resolve(draft)[0],
            "engine": settings,
            "max_concurrency": 64,
        }
    )
    async with real_node(inherited(), REAL) as node:
        first = wanted.model_copy(update={"replica_id": ReplicaId("first")})
        node.fake.want(desired(first, version=1))
        await node.until_state(ReplicaState.READY, "first")
        drain = first.model_copy(update={"desired": "drain"})
        node.fake.want(desired(drain, version=2))
        await node.until_state(ReplicaState.STOPPED, "first")
        node.fake.want(desired(wanted, version=3))
        report = await node.until_state(ReplicaState.READY, "second")
        (process,) = node.named("fl-replica")
        endpoint = Endpoint(
            f"http://{report.host}:{report.port}",
            "bench",
            {"Authorization": f"Bearer {wanted.token}"},
        )
        ready_s = sum(stage.seconds for stage in report.stages)
        replica = Running(NAME, number_format, endpoint, process.pid, ready_s)
        try:
            yield replica
        finally:
            for each in replica.processes():
                each.resume()
