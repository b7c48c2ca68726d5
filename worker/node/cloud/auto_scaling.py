"""The lifecycle hooks of an EC2 Auto Scaling group, told with the instance's own credentials."""

import asyncio
from typing import Any

from infra.errors import DependencyMissing
from worker.node.cloud.port import Hook, HooksUnavailable, NobodyWaits

_NOBODY_WAITS = "No active Lifecycle Action found"


class AutoScalingHooks:
    """Adapter of CompleteLifecycleAction and RecordLifecycleActionHeartbeat; see the port.

    The client is made at the first word, in a thread: what it imports takes longer than a node
    may take to register.
    """

    def __init__(self, *, group: str, instance_id: str, region: str) -> None:
        self._group = group
        self._instance_id = instance_id
        self._region = region
        self._client: Any = None

    async def heartbeat(self, hook: Hook) -> None:
        await self._say("record_lifecycle_action_heartbeat", hook)

    async def complete(self, hook: Hook) -> None:
        await self._say("complete_lifecycle_action", hook, LifecycleActionResult="CONTINUE")

    async def _say(self, call: str, hook: Hook, **more: str) -> None:
        await asyncio.to_thread(self._call, call, hook, more)

    def _call(self, call: str, hook: Hook, more: dict[str, str]) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._client is None:
                self._client = auto_scaling_client(self._region)
            getattr(self._client, call)(
                AutoScalingGroupName=self._group,
                LifecycleHookName=hook.value,
                InstanceId=self._instance_id,
                **more,
            )
        except ClientError as error:
            told = error.response["Error"]
            if told.get("Code") == "ValidationError" and _NOBODY_WAITS in told.get("Message", ""):
                raise NobodyWaits(told["Message"]) from error
            raise HooksUnavailable(str(error)) from error
        except BotoCoreError as error:
            raise HooksUnavailable(str(error)) from error


def check_boto3() -> None:
    """Raises DependencyMissing where words to the group could not be sent."""
    from importlib.util import find_spec

    if find_spec("boto3") is None:
        raise DependencyMissing(
            "an agent of EC2 Auto Scaling needs boto3", hint="pip install 'firstlight[aws]'"
        )


def auto_scaling_client(region: str) -> Any:
    """Credentials and endpoint come from where boto3 finds them: the instance's role."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "autoscaling",
        region_name=region,
        config=Config(
            connect_timeout=3,
            read_timeout=10,
            retries={"mode": "standard", "total_max_attempts": 3},
            user_agent_extra="firstlight",
        ),
    )
