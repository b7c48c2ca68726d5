"""A machine of EC2 as its agent finds it: who it is, what it is for, whom it tells."""

import asyncio
from dataclasses import dataclass

import structlog

from infra.errors import NoCapacity
from worker.node.cloud.auto_scaling import AutoScalingHooks, check_boto3
from worker.node.cloud.imds import InstanceMetadata
from worker.node.cloud.lifecycle import Lifecycle, Work
from worker.node.cloud.port import Hooks, Instance, Metadata, MetadataUnavailable
from worker.settings import NodeSettings

log = structlog.get_logger()

TRIES = 10  # of reading who we are; then the agent ends, and whoever keeps it starts it again
AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Rented:
    """One instance: `settings` have its id where they had none of their own."""

    settings: NodeSettings
    metadata: Metadata
    hooks: Hooks | None
    asked_at: float | None

    async def live(self, work: Work) -> None:
        """Follows its group until cancelled."""
        try:
            await Lifecycle(self.metadata, self.hooks, work).run()
        finally:
            self.metadata.close()


async def rented_machine(settings: NodeSettings) -> Rented:
    """This machine. Raises NoCapacity where it cannot find out which, DependencyMissing where its
    group could not be told."""
    metadata = InstanceMetadata(settings.metadata_url)
    instance = await _instance(metadata)
    hooks: Hooks | None = None
    if settings.group is not None:
        check_boto3()
        hooks = AutoScalingHooks(
            group=settings.group, instance_id=instance.instance_id, region=instance.region
        )
    if "id" not in settings.model_fields_set:
        settings = settings.model_copy(update={"id": instance.instance_id})
    return Rented(settings, metadata, hooks, instance.asked_at)


async def _instance(metadata: InstanceMetadata) -> Instance:
    for _ in range(TRIES - 1):
        try:
            return await metadata.instance()
        except MetadataUnavailable as error:
            log.warning("metadata.unavailable", why=str(error))
            await asyncio.sleep(AGAIN_S)
    try:
        return await metadata.instance()
    except MetadataUnavailable as error:
        raise NoCapacity(
            f"this machine cannot be told who it is: {error}",
            hint="is it one of EC2? else unset PLATFORM_NODE_CLOUD",
        ) from error
