"""An AWS account inside moto, served over HTTP, and an inventory of what it holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from infra.clock import SystemClock
from tests.aws.cloud import Cloud, Times
from tests.aws.wire import on_moto
from tests.terraform import gaps

REGION = "us-east-1"
# One that moto knows; the default of the examples, Deep Learning AMIs, is not among its parameters.
AMI = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id"


@dataclass(frozen=True)
class Account:
    """Where it answers, how programs reach it, and the machines in it."""

    url: str
    cloud: Cloud

    @property
    def environment(self) -> dict[str, str]:
        """All that a program of AWS needs to take it for AWS."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2",
        }

    def client(self, service: str) -> Any:
        session = boto3.Session("testing", "testing", region_name=REGION)
        return session.client(service, endpoint_url=self.url)  # type: ignore[call-overload]

    def inventory(self) -> dict[str, list[str]]:
        """Everything that costs or stays: kinds of things, and their names."""
        found = {kind: sorted(names) for kind, names in self._kinds()}
        return {kind: names for kind, names in found.items() if names}

    def _kinds(self) -> Iterator[tuple[str, list[str]]]:
        ec2, elb, iam = self.client("ec2"), self.client("elbv2"), self.client("iam")
        autoscaling, secrets = self.client("autoscaling"), self.client("secretsmanager")
        queues, topics = self.client("sqs"), self.client("sns")
        running = {"pending", "running", "stopping", "stopped"}
        yield "vpcs", [it["VpcId"] for it in ec2.describe_vpcs()["Vpcs"] if not it["IsDefault"]]
        yield (
            "instances",
            [
                it["InstanceId"]
                for each in ec2.describe_instances()["Reservations"]
                for it in each["Instances"]
                if it["State"]["Name"] in running
            ],
        )
        yield "addresses", [it["PublicIp"] for it in ec2.describe_addresses()["Addresses"]]
        endpoints = ec2.describe_vpc_endpoints()["VpcEndpoints"]  # deleted ones show for a while
        yield "endpoints", [it["VpcEndpointId"] for it in endpoints if it["State"] != "deleted"]
        templates = ec2.describe_launch_templates()["LaunchTemplates"]
        yield "templates", [it["LaunchTemplateName"] for it in templates]
        groups = autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        yield "groups", [it["AutoScalingGroupName"] for it in groups]
        yield (
            "balancers",
            [it["LoadBalancerName"] for it in elb.describe_load_balancers()["LoadBalancers"]],
        )
        yield (
            "targets",
            [it["TargetGroupName"] for it in elb.describe_target_groups()["TargetGroups"]],
        )
        yield "roles", [it["RoleName"] for it in iam.list_roles()["Roles"]]
        yield "buckets", [it["Name"] for it in self.client("s3").list_buckets()["Buckets"]]
        yield (
            "repositories",
            [
                it["repositoryName"]
                for it in self.client("ecr").describe_repositories()["repositories"]
            ],
        )
        yield (
            "stores",
            [it["Name"] for it in self.client("memorydb").describe_clusters()["Clusters"]],
        )
        yield "secrets", [it["Name"] for it in secrets.list_secrets()["SecretList"]]
        yield "queues", queues.list_queues().get("QueueUrls", [])
        yield "topics", [it["TopicArn"] for it in topics.list_topics()["Topics"]]
        yield "rules", [it["Name"] for it in self.client("events").list_rules()["Rules"]]
        logs = self.client("logs").describe_log_groups()["logGroups"]
        yield "logs", [it["logGroupName"] for it in logs]
        ecs = self.client("ecs")
        clusters = ecs.describe_clusters(clusters=ecs.list_clusters()["clusterArns"])["clusters"]
        # API_DeleteCluster: it becomes INACTIVE, and may be found for a while.
        yield "clusters", [it["clusterName"] for it in clusters if it["status"] != "INACTIVE"]
        kms = self.client("kms")
        # AWS's own, such as aws/ebs since the first encrypted volume: nobody can delete those.
        aliases = kms.list_aliases()["Aliases"]
        own = {it.get("TargetKeyId") for it in aliases if it["AliasName"].startswith("alias/aws/")}
        keys = [it["KeyId"] for it in kms.list_keys()["Keys"] if it["KeyId"] not in own]
        states = {it: kms.describe_key(KeyId=it)["KeyMetadata"]["KeyState"] for it in keys}
        yield "keys", [it for it in keys if states[it] == "Enabled"]


@contextmanager
def an_account() -> Iterator[Account]:
    """A fresh account on a free port, its state in this process. Its machines take no time."""
    cloud = Cloud(SystemClock.start().now, Times(0, 0, 0, retry_s=1))
    with gaps.closed(), on_moto(cloud, mocks=False):
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        account = Account(f"http://{host}:{port}", cloud)
        try:
            account.client("sts").get_caller_identity()
            yield account
        finally:
            server.stop()
