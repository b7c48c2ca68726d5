"""Whose a model is: what the routes of one model begin with."""

from typing import Annotated

from fastapi import Path

from control_plane.api.generation import model_not_found
from control_plane.api.services import Services
from control_plane.tenancy.identity import Identity
from infra.contracts.base import ModelName
from infra.contracts.revision import Revision

Name = Annotated[ModelName, Path(max_length=256)]


def owned(services: Services, name: ModelName, caller: Identity) -> Revision:
    """The leading revision of the caller's model; raises ModelNotFound, also for another's."""
    revision = services.deployments.get(name)
    if revision is None or not caller.owns(revision):
        known = filter(caller.may_call, services.deployments.all())
        raise model_not_found(name, (one.model for one in known))
    return revision
