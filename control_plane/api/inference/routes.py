"""Routes of the open inference protocol that ask about the server and its models."""

from importlib.metadata import version as version_of
from typing import Annotated, Final

from fastapi import APIRouter, Path

from control_plane.api.auth import Caller
from control_plane.api.generation import model_not_found
from control_plane.api.inference.question import FINISH_REASON
from control_plane.api.operations import check_readiness
from control_plane.api.ownership import Name
from control_plane.api.services import Services
from control_plane.tenancy.identity import Identity
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.inference import (
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from infra.contracts.revision import ModelState
from infra.errors import ReplicaFailed, RevisionNotFound

EXTENSIONS: Final = ("binary_tensor_data", "generate", "parameters")

Version = Annotated[str, Path(max_length=20)]

_INPUTS: Final = [TensorMetadata(name="text_input", datatype="BYTES", shape=[-1])]
_OUTPUTS: Final = [
    TensorMetadata(name=name, datatype="BYTES", shape=[-1])
    for name in ("text_output", FINISH_REASON)
]


def inference_router(services: Services) -> APIRouter:
    """The routes below /v2 that are not inference."""
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])

    @router.get("")
    async def describe_server() -> ServerMetadata:
        """What serves here; needs no key."""
        return ServerMetadata(version=version_of("firstlight"), extensions=list(EXTENSIONS))

    @router.get("/health/live")
    async def is_live() -> ServerLive:
        """Whether the process answers; needs no key."""
        return ServerLive()

    @router.get("/health/ready")
    async def is_ready() -> ServerReady:
        """Whether the platform should get traffic, see /readyz; needs no key."""
        await check_readiness(services)
        return ServerReady()

    @router.get("/models/{name}")
    @router.get("/models/{name}/versions/{version}")
    async def describe_model(
        name: Name, caller: Caller, version: Version | None = None
    ) -> ModelMetadata:
        """What a model takes and gives; its versions are the revisions in traffic."""
        versions = _versions(services, name, caller)
        if version is not None:
            _check_version(name, version, versions)
        return ModelMetadata(name=name, versions=versions, inputs=_INPUTS, outputs=_OUTPUTS)

    @router.get("/models/{name}/ready")
    @router.get("/models/{name}/versions/{version}/ready")
    async def is_model_ready(
        name: Name, caller: Caller, version: Version | None = None
    ) -> ModelReady:
        """Whether a request to the model would be answered: a model at zero is ready, as the
        request wakes it; one whose replicas cannot start is not."""
        versions = _versions(services, name, caller)
        if version is None:
            explained = services.autoscaler.explain(name)
        else:
            _check_version(name, version, versions)
            explained = services.autoscaler.explain_revision(RevisionName(f"{name}@{version}"))
        assert explained is not None, "it is in traffic"
        if explained.state is ModelState.FAILING:
            raise ReplicaFailed(f"{name} is not ready: {explained.reason}", hint=explained.hint)
        return ModelReady(name=name)

    return router


def _versions(services: Services, name: ModelName, caller: Identity) -> list[str]:
    """Numbers of the revisions in traffic, the largest share first; raises ModelNotFound."""
    release = services.deployments.release(name)
    if release is None or not caller.may_call(release.leading):
        known = filter(caller.may_call, services.deployments.all())
        raise model_not_found(name, (one.model for one in known))
    return [str(revision.number) for revision in release.revisions]


def _check_version(name: str, version: str, versions: list[str]) -> None:
    if version not in versions:
        raise RevisionNotFound(
            f"no version {version!r} of {name} is in traffic",
            hint=f"those in traffic are {', '.join(versions)}",
        )
