"""Node agents on a cloud's instances: they complete lifecycle hooks and speak the node protocol."""

import asyncio
from collections.abc import Callable

from botocore.exceptions import ClientError

from control_plane.capacity.ec2.calls import Clients
from control_plane.capacity.simulated.machine import MachineShape, NodeLink, SimulatedMachine
from control_plane.capacity.simulated.script import Script
from infra.clock import Clock
from infra.contracts.base import NodeId
from tests.aws.cloud import Cloud

LOOK_S = 0.5
Completer = Callable[[str, str], None]


class Agents:
    """What `worker/node` does on a machine of EC2, for every instance that has booted: where it
    boots into standby it completes the hook; where it is to serve, it registers first."""

    def __init__(
        self, cloud: Cloud, clients: Clients, link: NodeLink, clock: Clock, shape: MachineShape
    ) -> None:
        self._cloud = cloud
        self._clients = clients
        self._link = link
        self._clock = clock
        self._shape = shape
        self.machines: dict[str, SimulatedMachine] = {}

    async def run(self) -> None:
        """Until cancelled; then every agent ends."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(LOOK_S)
        finally:
            for machine in self.machines.values():
                await machine.close()

    async def look(self) -> None:
        """Every agent does what its machine's state asks of it."""
        self._cloud.tick()
        members = {member.instance_id: member for member in self._cloud.members()}
        for instance_id in self.machines.keys() - members.keys():
            await self.machines.pop(instance_id).close()
        for instance_id, member in members.items():
            match member.lifecycle_state:
                case "Warmed:Pending:Wait":
                    self._complete(member.auto_scaling_group_name, instance_id, "launching")
                case "Pending:Wait":
                    self._serve(instance_id)
                    await asyncio.sleep(0)
                    self._complete(member.auto_scaling_group_name, instance_id, "launching")
                case "InService":
                    self._serve(instance_id)
                case "Terminating:Wait" if not self._has_replicas(instance_id):
                    await self._stop(instance_id)
                    self._complete(member.auto_scaling_group_name, instance_id, "terminating")
                case "Warmed:Stopped":
                    await self._stop(instance_id)

    def _serve(self, instance_id: str) -> None:
        if instance_id in self.machines:
            return
        machine = self.machines[instance_id] = SimulatedMachine(
            NodeId(instance_id),
            self._link,
            self._clock,
            self._shape,
            lambda _: Script(),
            lambda _: None,
        )
        machine.start(boot_s=0.0)

    def _has_replicas(self, instance_id: str) -> bool:
        machine = self.machines.get(instance_id)
        return machine is not None and bool(machine.replicas())

    async def _stop(self, instance_id: str) -> None:
        machine = self.machines.pop(instance_id, None)
        if machine is not None:
            await machine.close()

    def _complete(self, group: str, instance_id: str, hook: str) -> None:
        try:
            self._clients.autoscaling.complete_lifecycle_action(
                LifecycleHookName=f"firstlight-{hook}",
                AutoScalingGroupName=group,
                InstanceId=instance_id,
                LifecycleActionResult="CONTINUE",
            )
        except ClientError:
            return  # asked for again at the next look
