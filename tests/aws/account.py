"""A small account as Terraform leaves it: groups of a deployment, their hooks and their queue."""

import json
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import boto3

from control_plane.capacity.ec2 import tags
from control_plane.capacity.ec2.calls import Clients, aws_clients
from tests.aws.cloud import REGION, Cloud
from tests.aws.wire import on_moto

DEPLOYMENT = "test"
L4, T4 = "g6.xlarge", "g4dn.xlarge"  # one GPU each: 24 and 16 GB
ZONES = ("us-east-1a", "us-east-1b")


class Inline(Executor):
    """Runs what it is given at once: virtual time stands still during a call."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@dataclass
class Account:
    """The cloud, its clients and the queue of its events."""

    cloud: Cloud
    clients: Clients
    queue_url: str
    template_ids: dict[str, str] = field(default_factory=dict)

    def add_group(
        self,
        name: str = "l4",
        *,
        kind: str = "l4",
        instance_type: str = L4,
        price: float | None = 0.8,
        purchase: str = "on-demand",
        zones: tuple[str, ...] = ZONES,
        most: int = 3,
        has_warm_pool: bool = True,
        has_hooks: bool = True,
        deployment: str = DEPLOYMENT,
        ttl_s: float = 600,
    ) -> None:
        """As `terraform/modules/gpu_pool` makes it: from zero, protected, with hooks."""
        told = {
            tags.DEPLOYMENT: deployment,
            tags.GPU_CLASS: kind,
            tags.INSTANCE_TYPE: instance_type,
            tags.PURCHASE: purchase,
            tags.TTL_S: str(ttl_s),
            **({} if price is None else {tags.PRICE_PER_HOUR: str(price)}),
        }
        groups = self.clients.autoscaling
        groups.create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=0,
            MaxSize=most,
            DesiredCapacity=0,
            AvailabilityZones=list(zones),
            LaunchTemplate={"LaunchTemplateId": self._template(instance_type)},
            NewInstancesProtectedFromScaleIn=True,
            Tags=[
                {"Key": key, "Value": value, "PropagateAtLaunch": True}
                for key, value in told.items()
            ],
        )
        if has_hooks:
            for transition, result in (("LAUNCHING", "ABANDON"), ("TERMINATING", "CONTINUE")):
                groups.put_lifecycle_hook(
                    LifecycleHookName=f"firstlight-{transition.lower()}",
                    AutoScalingGroupName=name,
                    LifecycleTransition=f"autoscaling:EC2_INSTANCE_{transition}",
                    HeartbeatTimeout=300 if transition == "LAUNCHING" else 120,
                    DefaultResult=result,
                )
        if has_warm_pool and purchase == "on-demand":
            groups.put_warm_pool(
                AutoScalingGroupName=name,
                MinSize=0,
                MaxGroupPreparedCapacity=0,
                PoolState="Stopped",
                InstanceReusePolicy={"ReuseOnScaleIn": True},
            )

    def _template(self, instance_type: str) -> str:
        if instance_type not in self.template_ids:
            made = self.clients.ec2.create_launch_template(
                LaunchTemplateName=f"firstlight-{instance_type}",
                LaunchTemplateData={
                    "ImageId": "ami-12c6146b",
                    "InstanceType": instance_type,
                    "MetadataOptions": {"HttpTokens": "required"},
                },
            )
            self.template_ids[instance_type] = made["LaunchTemplate"]["LaunchTemplateId"]
        return self.template_ids[instance_type]


@cache
def _clients() -> tuple[Clients, Any]:
    """Making them costs two seconds; they know no account, moto is asked at each call."""
    return aws_clients(), boto3.client("events", region_name=REGION)


@contextmanager
def account(cloud: Cloud) -> Iterator[Account]:
    """An account in `cloud` whose EC2 and Auto Scaling events go to one queue."""
    with on_moto(cloud):
        clients, events = _clients()
        queue_url = clients.sqs.create_queue(QueueName="capacity-events")["QueueUrl"]
        attributes = clients.sqs.get_queue_attributes(
            QueueUrl=queue_url, AttributeNames=["QueueArn"]
        )
        pattern = json.dumps({"source": ["aws.ec2", "aws.autoscaling"]})
        events.put_rule(Name="capacity", EventPattern=pattern)
        target = {"Id": "queue", "Arn": attributes["Attributes"]["QueueArn"]}
        events.put_targets(Rule="capacity", Targets=[target])
        yield Account(cloud, clients, queue_url)
