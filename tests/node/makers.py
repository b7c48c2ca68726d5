"""Small makers for the node's tests."""

from typing import Literal

from infra.contracts.base import ModelName, ReplicaId, RevisionName
from infra.contracts.model_spec import EngineSettings, Resources
from infra.contracts.node import DesiredState, ReplicaAssignment
from infra.contracts.revision import ResolvedSource


def assignment(
    name: str = "r1", desired: Literal["run", "drain"] = "run", uri: str = "file:///models/tiny"
) -> ReplicaAssignment:
    return ReplicaAssignment(
        replica_id=ReplicaId(name),
        model=ModelName("tiny"),
        revision=RevisionName("tiny@1"),
        desired=desired,
        drain_deadline_s=5,
        source=ResolvedSource(uri=uri, digest="sha256:0", files=()),
        engine=EngineSettings(),
        resources=Resources(),
        max_concurrency=8,
        token="secret-of-the-replica",
    )


def desired(*replicas: ReplicaAssignment, standby: int = 0, version: int = 1) -> DesiredState:
    return DesiredState(version=version, standby=standby, replicas=replicas)
