"""What the management routes show."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Literal

from pydantic import BaseModel

from control_plane.api.releases import shares_of
from control_plane.api.services import Services
from control_plane.autoscaler.tracked import DecisionRecord
from control_plane.fleet.node import Node
from control_plane.fleet.replica import Replica
from control_plane.tenancy.identity import Identity
from infra.contracts.base import ModelName
from infra.contracts.explanation import DecisionInputs, DecisionStatus, ModelExplanation
from infra.contracts.node import NodeStatus
from infra.contracts.revision import ModelStatus, ReplicaStatus, Revision
from infra.contracts.stage import ColdStartReport


class ModelEntry(BaseModel):
    """One model as OpenAI lists it, and how it stands."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    status: ModelStatus | None = None


class ModelList(BaseModel):
    """Every deployed model, by name."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ColdStartList(BaseModel):
    """Reports of cold requests, newest first."""

    object: Literal["list"] = "list"
    data: list[ColdStartReport]


class NodeList(BaseModel):
    """Every registered node, by id."""

    object: Literal["list"] = "list"
    data: list[NodeStatus]


class Readiness(BaseModel):
    """What was checked."""

    status: Literal["ready"] = "ready"
    checks: list[str]


def model_list(services: Services, caller: Identity, *, base_url: str) -> ModelList:
    """Every model that the caller may call; of its own ones also how they stand."""
    replicas: dict[ModelName, list[Replica]] = defaultdict(list)
    for replica in services.fleet.replicas():
        replicas[replica.model].append(replica)
    return ModelList(
        data=[
            ModelEntry(
                id=revision.model,
                created=int(revision.created_at),
                owned_by=revision.tenant,
                status=_status(services, revision, replicas[revision.model], base_url)
                if caller.owns(revision)
                else None,
            )
            for revision in services.deployments.all()
            if caller.may_call(revision)
        ]
    )


def model_status(services: Services, revision: Revision, *, base_url: str) -> ModelStatus:
    """A deployed model as it stands; replicas of its former revisions are shown until they end."""
    replicas = [it for it in services.fleet.replicas() if it.model == revision.model]
    return _status(services, revision, replicas, base_url)


def _status(
    services: Services, revision: Revision, replicas: Sequence[Replica], base_url: str
) -> ModelStatus:
    explanation = services.autoscaler.explain(revision.model)
    release = services.deployments.release(revision.model)
    assert explanation is not None and release is not None, "it is deployed"
    demand = services.lines.demand_of(revision.model)
    return ModelStatus(
        name=revision.model,
        state=explanation.state,
        revision=revision.name,
        spec=revision.spec,
        facts=revision.facts,
        digest=revision.digest,
        image=services.indexing.status_of(revision),
        url=f"{base_url.rstrip('/')}/v1/models/{revision.model}/invoke",
        created_at=revision.created_at,
        desired_replicas=explanation.desired_replicas,
        reason=explanation.reason,
        hint=explanation.hint,
        in_flight=demand.in_flight,
        waiting=demand.waiting,
        traffic=shares_of(release),
        replicas=tuple(_replica_status(services, replica) for replica in replicas),
    )


def model_explanation(services: Services, revision: Revision, *, last: int) -> ModelExplanation:
    """Why a deployed model is where it is, with the last decisions about its revisions."""
    explained = services.autoscaler.explain(revision.model)
    keep_alive = services.autoscaler.keep_alive(revision.name)
    release = services.deployments.release(revision.model)
    assert not (explained is None or keep_alive is None or release is None), "it is deployed"
    decided = (services.autoscaler.decisions(it.name) for it in release.revisions)
    records = sorted(chain.from_iterable(decided), key=lambda record: record.at)[-last:]
    return ModelExplanation(
        name=revision.model,
        revision=revision.name,
        state=explained.state,
        reason=explained.reason,
        hint=explained.hint,
        desired_replicas=explained.desired_replicas,
        image=services.indexing.status_of(revision),
        keep_alive=keep_alive,
        decisions=tuple(_decision(record) for record in reversed(records)),
    )


def _decision(record: DecisionRecord) -> DecisionStatus:
    observed, demand = record.observed, record.observed.demand
    idle_since = observed.idle_since
    return DecisionStatus(
        at=record.at,
        revision=record.revision,
        replicas=record.decision.replicas,
        reason=record.decision.reason,
        inputs=DecisionInputs(
            desired=observed.desired,
            ready=observed.ready,
            loading=observed.loading,
            in_flight=None if demand is None else demand.in_flight,
            waiting=None if demand is None else demand.waiting,
            stable_mean=_finite(observed.stable_mean),
            panic_mean=_finite(observed.panic_mean),
            idle_s=None if idle_since is None else max(0.0, record.at - idle_since),
            grace_s=observed.grace_s,
            scheduled=observed.scheduled,
            warm=observed.warm,
            is_in_panic=observed.panic is not None and record.at < observed.panic.until,
            is_contended=observed.is_contended,
            is_superseded=observed.is_superseded,
        ),
    )


def _finite(mean: float | None) -> float | None:
    return mean if mean is not None and math.isfinite(mean) else None


def _replica_status(services: Services, replica: Replica) -> ReplicaStatus:
    return ReplicaStatus(
        replica_id=replica.replica_id,
        node_id=replica.node_id,
        revision=replica.revision.name,
        state=replica.state,
        since=replica.since,
        progress=replica.progress,
        in_flight=services.lines.in_flight(replica),
        detail=replica.detail,
    )


def node_status(services: Services, node: Node) -> NodeStatus:
    """A registered node."""
    return NodeStatus(
        node_id=node.node_id,
        cpus=node.cpus,
        memory_bytes=node.memory_bytes,
        gpus=node.gpus,
        started_at=node.started_at,
        runtime=node.runtime,
        standby=node.standby.total,
        standby_reason=node.standby.reason,
        standby_ready=node.parked,
        sleepers=node.sleepers,
        replicas=tuple(it.replica_id for it in services.fleet.on_node(node.node_id)),
        leaving=node.leaving,
    )
