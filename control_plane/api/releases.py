"""Routes of a model's revisions and of how its requests are split between them."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from control_plane.api.auth import Caller
from control_plane.api.ownership import Name, owned
from control_plane.api.services import Services
from control_plane.deployments.record import Record
from control_plane.deployments.release import Release
from infra.contracts.base import ModelName
from infra.contracts.release import (
    LockedFile,
    NewTraffic,
    RevisionStatus,
    Rollback,
    TrafficShare,
    TrafficStatus,
)
from infra.contracts.revision import Revision
from infra.contracts.warming import Warming, WarmStatus
from infra.errors import ModelNotFound, RevisionNotFound
from infra.metrics import Counter


class RevisionList(BaseModel):
    """Every revision that is kept, the newest first."""

    object: Literal["list"] = "list"
    data: list[RevisionStatus]


def releases_router(services: Services, requests: Counter) -> APIRouter:
    """The routes that say which revision answers."""
    router = APIRouter(prefix="/v1/models/{name}", tags=["releases"])
    deployments = services.deployments

    @router.get("/revisions")
    async def list_revisions(name: Name, caller: Caller) -> RevisionList:
        """The revisions that are kept: those in traffic, and those that could be again."""
        owned(services, name, caller)
        record, revisions = await deployments.history(name)
        mine = filter(caller.owns, revisions)
        return RevisionList(data=[_revision_status(services, requests, record, it) for it in mine])

    @router.get("/traffic")
    async def show_traffic(name: Name, caller: Caller) -> TrafficStatus:
        """How requests are split."""
        owned(services, name, caller)
        release = deployments.release(name)
        if release is None:
            raise ModelNotFound(f"no model {name} is deployed", model=name)
        return _traffic_status(name, release)

    @router.put("/traffic")
    async def split_traffic(name: Name, asked: NewTraffic, caller: Caller) -> TrafficStatus:
        """Splits the requests that come from now on; those that are held or run are not moved.

        Requests of one `Firstlight-Session` go to one revision.
        """
        owned(services, name, caller)
        release = await deployments.split(
            name, asked.traffic, by=caller, generation=asked.generation
        )
        return _traffic_status(name, release)

    @router.post("/warm", status_code=202)
    async def warm_revision(name: Name, asked: Warming, caller: Caller) -> WarmStatus:
        """Has replicas of a revision ready before requests are sent there; how far they are.

        They are kept for so long, and let go unless the revision is in traffic by then or this was
        asked again. Repeat it until they are ready, then change the traffic.
        """
        owned(services, name, caller)
        revision = await deployments.kept(name, asked.revision)
        if not caller.owns(revision):
            raise RevisionNotFound(f"no revision {asked.revision} is kept", revision=asked.revision)
        owned(services, name, caller)  # deleted meanwhile, it would be warmed for nobody
        until = services.clock.now() + asked.seconds
        explanation = services.autoscaler.warm(revision, asked.replicas, until=until)
        return WarmStatus(
            revision=revision.name,
            replicas=min(asked.replicas, revision.spec.scaling.max),
            ready=services.fleet.counts(revision.name).ready,
            until=until,
            state=explanation.state,
            reason=explanation.reason,
            hint=explanation.hint,
        )

    @router.post("/rollback")
    async def roll_back(name: Name, caller: Caller, asked: Rollback | None = None) -> TrafficStatus:
        """Sends all requests to a former revision: the one named, or the one that last had all."""
        owned(services, name, caller)
        wanted = asked or Rollback()
        release = await deployments.rollback(
            name, wanted.revision, by=caller, generation=wanted.generation
        )
        return _traffic_status(name, release)

    return router


def shares_of(release: Release) -> tuple[TrafficShare, ...]:
    """The split as clients see it."""
    return tuple(
        TrafficShare(revision=share.revision.name, percent=share.percent)
        for share in release.shares
    )


def _traffic_status(name: ModelName, release: Release) -> TrafficStatus:
    return TrafficStatus(name=name, generation=release.generation, traffic=shares_of(release))


def _revision_status(
    services: Services, requests: Counter, record: Record, revision: Revision
) -> RevisionStatus:
    demand = services.lines.demand(revision.name)
    ended = requests.matching(revision.model, revision.name)
    failed = {labels: count for labels, count in ended.items() if int(labels[-1]) >= 500}
    return RevisionStatus(
        revision=revision.name,
        percent=record.percents.get(revision.number, 0),
        is_previous=revision.number == record.previous,
        source=revision.source.uri,
        digest=revision.digest,
        files=tuple(
            LockedFile(path=file.path, size=file.size, digest=file.digest)
            for file in revision.source.files
        ),
        image=services.indexing.status_of(revision),
        created_at=revision.created_at,
        replicas=services.fleet.counts(revision.name).ready,
        in_flight=demand.in_flight,
        waiting=demand.waiting,
        requests=int(sum(ended.values())),
        failed=int(sum(failed.values())),
    )
