"""Puts a `Cloud` into moto: the operations that it answers, and what is patched while it does."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from moto import mock_aws
from moto.autoscaling.exceptions import AutoscalingClientError, ValidationError
from moto.autoscaling.models import AutoScalingBackend, FakeAutoScalingGroup, InstanceState
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, BaseResponse, EmptyResult
from moto.ec2.exceptions import EC2ClientError
from moto.sqs.models import SQSBackend

from tests.aws.cloud import Cloud


class ResourceInUse(AutoscalingClientError):
    """API_DeleteAutoScalingGroup names it so."""

    code = "ResourceInUse"


@contextmanager
def on_moto(cloud: Cloud, *, mocks: bool = True) -> Iterator[None]:
    """boto3 talks to this cloud; with `mocks` in process, else where moto's server runs."""
    with ExitStack() as stack:
        if mocks:
            stack.enter_context(mock_aws())
        for owner, name, value in _patches(cloud):
            stack.callback(setattr, owner, name, getattr(owner, name, None))
            setattr(owner, name, value)
        yield


def _patches(cloud: Cloud) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    answered = BaseResponse.call_action
    waited = SQSBackend.receive_message

    def call_action(response: Any) -> Any:
        """APIReference/throttling and errors-overview: any operation may be refused."""
        operation = response._get_action()
        with cloud.lock:
            cloud.calls.append(operation)
            cloud.tick()
            if cloud.faults[operation]:
                code, message = cloud.faults[operation].popleft()
                with warnings.catch_warnings():  # it warns of codes that no service's model lists
                    warnings.simplefilter("ignore")
                    refusal = ActionResult(EC2ClientError(code, message))
                    status, headers, body = response.serialized(refusal)
                return status, headers | {"status": str(status)}, body
            done = answered(response)
            cloud.tick()
            return done

    def receive_message(backend: Any, name: str, count: int, wait_s: int, *rest: Any) -> Any:
        """Virtual time does not pass within a call, so none waits for a message."""
        return waited(backend, name, count, 0, *rest)

    def set_desired(group: FakeAutoScalingGroup, capacity: int | None) -> None:
        """API_SetDesiredCapacity only notes it; the group follows in its own time."""
        group.desired_capacity = group.min_size if capacity is None else int(capacity)

    def leave_alone(backend: Any, instance_ids: list[str]) -> None:
        """moto replaces an ended instance within the call; here its group notices (`tick`)."""

    yield BaseResponse, "call_action", call_action
    yield SQSBackend, "receive_message", receive_message
    yield FakeAutoScalingGroup, "set_desired_capacity", set_desired
    yield AutoScalingBackend, "notify_terminate_instances", leave_alone
    for name, operation in _operations(cloud).items():
        yield AutoScalingResponse, name, operation


def _operations(cloud: Cloud) -> dict[str, Callable[[Any], ActionResult]]:
    def set_desired_capacity(response: Any) -> ActionResult:
        """API_SetDesiredCapacity: beyond the group's bounds it is refused (moto takes it)."""
        group, wanted = _group(cloud, response), response._get_int_param("DesiredCapacity")
        if not int(group.min_size or 0) <= wanted <= int(group.max_size or 0):
            raise ValidationError(
                f"New SetDesiredCapacity value {wanted} is above max value {group.max_size} for "
                "the AutoScalingGroup."
            )
        group.set_desired_capacity(wanted)
        return EmptyResult()

    def launch_instances(response: Any) -> ActionResult:
        """userguide/launch-instances-synchronously: instances or errors, at once; the same answer
        for the same token; desired grows by what came; warm pools are not used."""
        return ActionResult(
            cloud.launch(
                _group(cloud, response),
                zone=(response._get_param("AvailabilityZones") or [None])[0],
                token=response._get_param("ClientToken"),
            )
        )

    def describe_warm_pool(response: Any) -> ActionResult:
        group = _group(cloud, response)
        instances = [_described(member) for member in cloud.warm(group.name)]
        return ActionResult({"WarmPoolConfiguration": group.warm_pool, "Instances": instances})

    def delete_warm_pool(response: Any) -> ActionResult:
        group = _group(cloud, response)
        for member in tuple(cloud.warm(group.name)):
            cloud.end(group, member)
        group.warm_pool = None
        return EmptyResult()

    def delete_auto_scaling_group(response: Any) -> ActionResult:
        """API_DeleteAutoScalingGroup: with instances by force only, which ends them at once."""
        group = _group(cloud, response)
        members = (*group.instance_states, *cloud.warm(group.name))
        if members and not response._get_bool_param("ForceDelete", False):
            raise ResourceInUse("You cannot delete an AutoScalingGroup while there are instances.")
        for member in members:
            cloud.end(group, member)
        cloud.backend().delete_auto_scaling_group(group.name)
        return EmptyResult()

    def complete_lifecycle_action(response: Any) -> ActionResult:
        """API_CompleteLifecycleAction: by token or instance, once, while it waits."""
        group, member = _waiting(cloud, response)
        cloud.finish(group, member, response._get_param("LifecycleActionResult"))
        return EmptyResult()

    def record_lifecycle_action_heartbeat(response: Any) -> ActionResult:
        """API_RecordLifecycleActionHeartbeat: waits for the hook's timeout anew."""
        group, member = _waiting(cloud, response)
        cloud.wait_anew(group, member)
        return EmptyResult()

    def describe_scaling_activities(response: Any) -> ActionResult:
        """API_DescribeScalingActivities: the newest first."""
        return ActionResult({"Activities": cloud.activities(_group(cloud, response).name)})

    def terminate_instance_in_auto_scaling_group(response: Any) -> ActionResult:
        """API_TerminateInstanceInAutoScalingGroup: of none in a warm pool; the group replaces it
        unless its desired capacity shrinks with it."""
        instance_id = response._get_param("InstanceId")
        for group in cloud.groups():
            for member in group.instance_states:
                if member.instance_id == instance_id:
                    if response._get_bool_param("ShouldDecrementDesiredCapacity", False):
                        group.desired_capacity = max(0, (group.desired_capacity or 0) - 1)
                    cloud.take_out(group, member, may_return=False)
                    return ActionResult({"Activity": cloud.activity(group, member)})
        raise ValidationError(f"Instance Id not found - No managed instance found: {instance_id}")

    def set_instance_protection(response: Any) -> ActionResult:
        """API_SetInstanceProtection: of instances in service."""
        group, ids = _group(cloud, response), response._get_param("InstanceIds", [])
        for member in group.instance_states:
            if member.instance_id in ids and member.lifecycle_state != "InService":
                raise ValidationError(f"The instance {member.instance_id} is not in InService.")
        is_protected = response._get_bool_param("ProtectedFromScaleIn")
        cloud.backend().set_instance_protection(group.name, ids, is_protected)
        return EmptyResult()

    return {name: it for name, it in locals().items() if callable(it)}


def _group(cloud: Cloud, response: Any) -> FakeAutoScalingGroup:
    name = response._get_param("AutoScalingGroupName")
    groups = {group.name: group for group in cloud.groups()}
    if name not in groups:
        raise ValidationError(f"AutoScalingGroup name not found - {name}")
    return groups[name]


def _waiting(cloud: Cloud, response: Any) -> tuple[FakeAutoScalingGroup, InstanceState]:
    group = _group(cloud, response)
    wanted = response._get_param("InstanceId")
    token = response._get_param("LifecycleActionToken")
    for member in (*group.instance_states, *cloud.warm(group.name)):
        is_meant = member.instance_id == wanted or (token and cloud.token(member) == token)
        if is_meant and member.lifecycle_state.endswith(":Wait"):
            return group, member
    raise ValidationError(f"No active Lifecycle Action found with instance ID {wanted}")


def _described(member: InstanceState) -> dict[str, str]:
    return {
        "InstanceId": member.instance_id,
        "InstanceType": member.instance_type,
        "AvailabilityZone": member.availability_zone,
        "LifecycleState": member.lifecycle_state,
        "HealthStatus": member.health_status,
    }
