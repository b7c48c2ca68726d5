"""Small makers for the node's tests."""

from typing import Any, Literal

from infra.contracts.base import ModelName, ReplicaId, RevisionName
from infra.contracts.model_spec import EngineSettings, Resources
from infra.contracts.node import DesiredState, Gpu, ReplicaAssignment, Sleeper, SleepTerms
from infra.contracts.revision import ResolvedSource
from worker.node.sleepers import Sleeping


def assignment(
    name: str = "r1",
    desired: Literal["run", "drain"] = "run",
    uri: str = "file:///models/tiny",
    sleep_s: float = 0,
    gpus: int = 0,
    gpu: str | None = None,
    image: str | None = None,
) -> ReplicaAssignment:
    return ReplicaAssignment(
        replica_id=ReplicaId(name),
        model=ModelName("tiny"),
        revision=RevisionName("tiny@1"),
        desired=desired,
        drain_deadline_s=5,
        source=ResolvedSource(uri=uri, digest="sha256:0", files=()),
        image=image,
        engine=EngineSettings(tensor_parallel=max(1, gpus)),
        resources=Resources(gpus=gpus, gpu=gpu),
        max_concurrency=8,
        sleep_s=sleep_s,
        token="secret-of-the-replica",
    )


def desired(*replicas: ReplicaAssignment, standby: int = 0, version: int = 1) -> DesiredState:
    return DesiredState(version=version, standby=standby, replicas=replicas)


def may_sleep(
    state: DesiredState, *revisions: str, most: int = 8, memory_bytes: int = 1 << 30
) -> DesiredState:
    """The same, and these revisions may sleep: tiny@1, unless others are named."""
    terms = SleepTerms(
        revisions=tuple(map(RevisionName, revisions or ("tiny@1",))),
        most=most,
        memory_bytes=memory_bytes,
    )
    return state.model_copy(update={"sleep": terms})


def sleeping(
    worker_id: int,
    *,
    revision: str = "tiny@1",
    since: float = 0,
    memory_bytes: int = 1,
    digest: str = "sha256:0",
    engine: dict[str, Any] | None = None,
    gpus: tuple[Gpu, ...] = (),
    is_over: bool = False,
) -> Sleeping:
    told = Sleeper(
        revision=RevisionName(revision),
        memory_bytes=memory_bytes,
        since=since,
        until=since + 60,
    )
    recipe = (digest, None, None, EngineSettings(**engine or {}), Resources())
    model = ModelName(revision.rpartition("@")[0])
    return Sleeping(worker_id, model, recipe, told, gpus, is_over)
