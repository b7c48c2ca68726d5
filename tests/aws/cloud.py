"""EC2 Auto Scaling as AWS documents it, in virtual time, on moto, which stores what it is told.

moto answers the wire and has the networks, templates, instances and tags. What is added here: warm
pools with instances in them, lifecycle hooks that wait, instances that take time, capacity that
runs out, scaling activities, LaunchInstances, errors on demand, and EventBridge's events. Each
behaviour names the page of the AWS documentation that it follows; where that leaves something open
it is said. `userguide` is docs.aws.amazon.com/autoscaling/ec2/userguide.
"""

import json
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from moto.autoscaling.exceptions import ValidationError
from moto.autoscaling.models import FakeAutoScalingGroup, InstanceState, autoscaling_backends
from moto.ec2.exceptions import EC2ClientError
from moto.events.models import events_backends

ACCOUNT, REGION = "123456789012", "us-east-1"
READY_IN_POOL = ("Warmed:Stopped", "Warmed:Running")
ALIVE = ("Pending", "Pending:Wait", "Pending:Proceed", "InService")


@dataclass(frozen=True)
class Times:
    """Seconds that things take (field notes: 26 s from the call to a booted instance on demand,
    10 s from standby)."""

    launch_s: float = 26.0
    start_s: float = 10.0
    stop_s: float = 20.0
    # AWS does not say how soon a group launches again after a failure, or after an instance ended
    # (userguide/ec2-auto-scaling-health-checks: `periodic`).
    retry_s: float = 30.0


@dataclass
class Life:
    """What an instance is doing in its group; `due_at` ends what it waits for."""

    due_at: float
    is_hooked: bool = False  # the hook of this transition has waited
    token: str = ""
    result: str = "CONTINUE"  # of the hook, if nobody completes it
    goes_to_pool: bool = False


@dataclass
class Side:
    """What moto's group has no place for."""

    warm: list[InstanceState] = field(default_factory=list)
    activities: list[dict[str, Any]] = field(default_factory=list)
    tries_at: float = 0.0
    launches: dict[str, dict[str, Any]] = field(default_factory=dict)  # by client token


class Cloud:
    """One account in one region. Time passes in it when it is asked something, or by `tick`."""

    def __init__(self, now: Callable[[], float], times: Times = Times()) -> None:
        self.now = now
        self.times = times
        self.capacity: dict[tuple[str, str | None], int] = {}  # what is left of (type, zone)
        self.faults: defaultdict[str, deque[tuple[str, str]]] = defaultdict(deque)
        self.calls: list[str] = []
        self._lives: dict[str, Life] = {}
        self._sides: defaultdict[str, Side] = defaultdict(Side)
        self._is_ticking = False
        self.lock = RLock()  # threads of a server, and those that look on

    # -- hands of the tests --------------------------------------------------------------------

    def fail(self, operation: str, code: str, message: str = "injected", times: int = 1) -> None:
        """The next calls of an operation, such as `SetDesiredCapacity`, are refused."""
        self.faults[operation].extend([(code, message)] * times)

    def group(self, name: str) -> FakeAutoScalingGroup:
        return self.backend().autoscaling_groups[name]

    def warm(self, name: str) -> list[InstanceState]:
        """The instances in a group's warm pool."""
        return self._sides[name].warm

    def members(self) -> Iterator[InstanceState]:
        """Every instance of every group, warm or not."""
        for group in self.groups():
            yield from (*group.instance_states, *self._sides[group.name].warm)

    def member(self, instance_id: str) -> InstanceState:
        return next(it for it in self.members() if it.instance_id == instance_id)

    def is_booted(self, member: InstanceState) -> bool:
        """Whether its operating system runs."""
        return member.instance.is_running() and self._lives[member.instance_id].due_at <= self.now()

    def interrupt(self, instance_id: str) -> None:
        """UserGuide/spot-instance-termination-notices."""
        detail = {"instance-id": instance_id, "instance-action": "terminate"}
        self._emit("aws.ec2", "EC2 Spot Instance Interruption Warning", detail)

    def recommend_rebalance(self, instance_id: str) -> None:
        """UserGuide/rebalance-recommendations."""
        detail = {"instance-id": instance_id}
        self._emit("aws.ec2", "EC2 Instance Rebalance Recommendation", detail)

    def kill(self, instance_id: str) -> None:
        """The instance ends by itself, or AWS takes it."""
        self.member(instance_id).instance.terminate()
        self._state_changed(instance_id, "terminated")
        self.tick()

    # -- what the wire asks for ----------------------------------------------------------------

    def launch(
        self, group: FakeAutoScalingGroup, *, zone: str | None, token: str | None
    ) -> dict[str, Any]:
        """The answer to LaunchInstances of one instance.

        That it refuses to pass the maximum size is not written anywhere, and taken for granted.
        """
        side = self._sides[group.name]
        if token is not None and token in side.launches:
            return side.launches[token]
        if (group.desired_capacity or 0) >= (group.max_size or 0):
            raise ValidationError("The capacity is above the maximum size of the group.")
        where = {"InstanceType": group.instance_type, "AvailabilityZone": zone}
        answer: dict[str, Any] = {"AutoScalingGroupName": group.name, "ClientToken": token}
        try:
            member = self._run(group, "Pending", zone)
        except EC2ClientError as error:
            failure = {"ErrorCode": error.code, "ErrorMessage": error.message}
            return answer | {"Instances": [], "Errors": [where | failure]}
        group.instance_states.append(member)
        group.desired_capacity = (group.desired_capacity or 0) + 1
        answer |= {"Instances": [where | {"InstanceIds": [member.instance_id]}], "Errors": []}
        if token is not None:
            side.launches[token] = answer
        return answer

    def activities(self, name: str) -> list[dict[str, Any]]:
        """Of a group, the newest first."""
        return self._sides[name].activities

    def activity(self, group: FakeAutoScalingGroup, member: InstanceState) -> dict[str, Any]:
        """Logs that an instance is being ended."""
        self._log(group, f"Terminating EC2 instance: {member.instance_id}", "InProgress")
        return self._sides[group.name].activities[0]

    def token(self, member: InstanceState) -> str:
        """Of the lifecycle action that it waits for, or waited for last."""
        return self._lives[member.instance_id].token

    def wait_anew(self, group: FakeAutoScalingGroup, member: InstanceState) -> None:
        """Its hook's timeout begins again."""
        is_ending = member.lifecycle_state.startswith("Terminating")
        hook = self._hook(group, "TERMINATING" if is_ending else "LAUNCHING")
        self._lives[member.instance_id].due_at = self.now() + float(hook.heartbeat_timeout)

    # -- time ----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Everything that is due by now happens; within a tick, nothing does."""
        with self.lock:
            if self._is_ticking:
                return
            self._is_ticking = True
            try:
                for group in self.groups():
                    self._tick(group, self._sides[group.name])
            finally:
                self._is_ticking = False

    def _tick(self, group: FakeAutoScalingGroup, side: Side) -> None:
        for member in (*group.instance_states, *side.warm):
            if member.instance._state.name == "terminated":
                self._drop(group, member)
                side.tries_at = self.now() + self.times.retry_s
            while self._move(group, side, member):
                pass
        self._scale(group, side)
        self._fill(group, side)

    def _move(self, group: FakeAutoScalingGroup, side: Side, member: InstanceState) -> bool:
        """userguide/warm-pool-instance-lifecycle; True where it went on to the next state."""
        life, before = self._lives[member.instance_id], member.lifecycle_state
        if life.due_at > self.now() and not before.endswith(":Proceed"):
            return False
        match before:
            case "Pending" | "Warmed:Pending" if self._wait(group, member, "LAUNCHING"):
                pass
            case "Pending" | "Pending:Proceed":
                member.lifecycle_state = "InService"
                self._log(group, f"Launching a new EC2 instance: {member.instance_id}")
                self._say_of(group, member, "EC2 Instance Launch Successful")
            case "Warmed:Pending" | "Warmed:Pending:Proceed":
                self._park(group, member)
            case "Pending:Wait" | "Warmed:Pending:Wait" | "Terminating:Wait":
                self.finish(group, member, life.result)
            case "Terminating" if self._wait(group, member, "TERMINATING"):
                pass
            case "Terminating" | "Terminating:Proceed":
                if life.goes_to_pool:
                    group.instance_states.remove(member)
                    side.warm.append(member)
                    self._park(group, member)
                else:
                    self.end(group, member)
            case _:
                return False
        return member.lifecycle_state != before

    def _wait(self, group: FakeAutoScalingGroup, member: InstanceState, transition: str) -> bool:
        """userguide/lifecycle-hooks: an instance waits once a transition, for its heartbeat."""
        life, hook = self._lives[member.instance_id], self._hook(group, transition)
        if hook is None or life.is_hooked:
            return False
        origin = "AutoScalingGroup" if transition == "TERMINATING" else "EC2"
        destination = "WarmPool" if member.lifecycle_state.startswith("Warmed") else "EC2"
        member.lifecycle_state += ":Wait"
        life.is_hooked, life.token = True, str(uuid.uuid4())
        life.due_at = self.now() + float(hook.heartbeat_timeout or 3600)
        life.result = hook.default_result or "ABANDON"
        name = "launch" if transition == "LAUNCHING" else "terminate"
        self._emit(
            "aws.autoscaling",
            f"EC2 Instance-{name} Lifecycle Action",
            {
                "LifecycleActionToken": life.token,
                "AutoScalingGroupName": group.name,
                "LifecycleHookName": hook.name,
                "EC2InstanceId": member.instance_id,
                "LifecycleTransition": f"autoscaling:EC2_INSTANCE_{transition}",
                "Origin": origin,
                "Destination": destination,
            },
        )
        return True

    def finish(self, group: FakeAutoScalingGroup, member: InstanceState, result: str) -> None:
        """userguide/adding-lifecycle-hooks: an abandoned launch ends the instance."""
        life = self._lives[member.instance_id]
        if member.lifecycle_state.startswith("Terminating") or result == "CONTINUE":
            member.lifecycle_state = member.lifecycle_state.replace(":Wait", ":Proceed")
            return
        life.due_at = self.now()
        self._log(group, f"Launching a new EC2 instance: {member.instance_id}", "Cancelled",
                  "Instance failed to complete user's Lifecycle Action")  # fmt: skip
        self.end(group, member)

    def _scale(self, group: FakeAutoScalingGroup, side: Side) -> None:
        """userguide/ec2-auto-scaling-warm-pools: out of the warm pool first; in: unprotected only,
        and back to the pool where the reuse policy says so."""
        alive = [it for it in group.instance_states if it.lifecycle_state in ALIVE]
        wanted = group.desired_capacity or 0
        if self.now() >= side.tries_at:
            for _ in range(wanted - len(alive)):
                if not self._scale_out(group, side):
                    side.tries_at = self.now() + self.times.retry_s
                    break
        surplus = max(0, len(alive) - wanted)
        for member in [it for it in alive if not it.protected_from_scale_in][:surplus]:
            self.take_out(group, member, may_return=True)

    def _scale_out(self, group: FakeAutoScalingGroup, side: Side) -> bool:
        ready = [it for it in side.warm if it.lifecycle_state in READY_IN_POOL]
        try:
            if ready:
                self._start(group, side, ready[0])
            else:
                group.instance_states.append(self._run(group, "Pending"))
        except EC2ClientError as error:
            # userguide/ts-as-instancelaunchfailure has these sentences
            self._log(group, "Launching a new EC2 instance", "Failed", error.message)
            return False
        return True

    def _start(self, group: FakeAutoScalingGroup, side: Side, member: InstanceState) -> None:
        """UserGuide/Stop_Start: a stopped instance needs capacity again, and may not get it."""
        life = self._lives[member.instance_id]
        life.due_at, life.is_hooked = self.now(), False
        if member.lifecycle_state == "Warmed:Stopped":
            self._take_capacity(member.instance_type, member.availability_zone)
            member.instance.start()
            member.instance.launch_time = self._time()
            life.due_at += self.times.start_s
        side.warm.remove(member)
        group.instance_states.append(member)
        member.lifecycle_state = "Pending"
        member.protected_from_scale_in = group.new_instances_protected_from_scale_in

    def _fill(self, group: FakeAutoScalingGroup, side: Side) -> None:
        """API_PutWarmPool: the pool's size is max(MinSize, MaxGroupPreparedCapacity - desired), or
        just MinSize where both are the same. The second bound counts instances `in any state
        except Terminated`, so those that are on their way back, too."""
        pool = group.warm_pool
        if pool is None:
            return
        most = pool.max_group_prepared_capacity
        prepared = group.max_size if most in {None, -1} else int(most)
        least = int(pool.min_size or 0)
        is_absolute = most is not None and int(most) == least
        others = max(group.desired_capacity or 0, len(group.instance_states))
        size = least if is_absolute else max(least, prepared - others)
        for _ in range(size - len(side.warm)):
            try:
                side.warm.append(self._run(group, "Warmed:Pending"))
            except EC2ClientError as error:
                self._log(group, "Launching a new EC2 instance into the warm pool", "Failed",
                          error.message)  # fmt: skip
                break
        for member in side.warm[size:]:
            self.end(group, member)

    # -- instances -----------------------------------------------------------------------------

    def _run(
        self, group: FakeAutoScalingGroup, state: str, zone: str | None = None
    ) -> InstanceState:
        zone = zone or self._zone(group)
        self._take_capacity(group.instance_type, zone)
        others, subnets, zones = list(group.instance_states), group.vpc_zone_identifier, None
        zones = group.availability_zones
        if subnets:
            group.vpc_zone_identifier = subnets.split(",")[zones.index(zone)]
        group.availability_zones = [zone]
        try:
            group.replace_autoscaling_group_instances(1, group.get_propagated_tags())
        finally:
            group.availability_zones, group.vpc_zone_identifier = zones, subnets
        member = next(it for it in group.instance_states if it not in others)
        group.instance_states.remove(member)
        member.lifecycle_state = state
        member.instance.launch_time = self._time()
        self._lives[member.instance_id] = Life(self.now() + self.times.launch_s)
        return member

    def _zone(self, group: FakeAutoScalingGroup) -> str:
        """userguide/ec2-auto-scaling-benefits: a group tries its other zones by itself."""
        for zone in group.availability_zones:
            if self.capacity.get((group.instance_type, zone), 1) > 0:
                return str(zone)
        return str(group.availability_zones[0])

    def _take_capacity(self, instance_type: str, zone: str) -> None:
        """APIReference/errors-overview: InsufficientInstanceCapacity."""
        for key in ((instance_type, zone), (instance_type, None)):
            if key not in self.capacity:
                continue
            if self.capacity[key] < 1:
                raise EC2ClientError(
                    "InsufficientInstanceCapacity",
                    f"We currently do not have sufficient {instance_type} capacity in the "
                    f"Availability Zone you requested ({zone}).",
                )
            self.capacity[key] -= 1

    def _park(self, group: FakeAutoScalingGroup, member: InstanceState) -> None:
        pool = group.warm_pool
        state = "Stopped" if pool is None else pool.pool_state or "Stopped"
        life = self._lives[member.instance_id]
        life.goes_to_pool, life.is_hooked, life.due_at = False, False, self.now()
        member.lifecycle_state = f"Warmed:{state}"
        if state == "Stopped":
            member.instance.stop()
            self._state_changed(member.instance_id, "stopped")

    def take_out(
        self, group: FakeAutoScalingGroup, member: InstanceState, *, may_return: bool
    ) -> None:
        """userguide/ec2-auto-scaling-warm-pools, instance reuse policy. It speaks of scale-in only:
        TerminateInstanceInAutoScalingGroup is taken not to return an instance."""
        pool = group.warm_pool
        reuses = pool is not None and bool((pool.instance_reuse_policy or {}).get("ReuseOnScaleIn"))
        life = self._lives[member.instance_id]
        life.is_hooked, life.due_at = False, self.now()
        life.goes_to_pool = may_return and reuses
        member.lifecycle_state = "Terminating"

    def end(self, group: FakeAutoScalingGroup, member: InstanceState) -> None:
        if member.instance._state.name != "terminated":
            member.instance.terminate()
            self._state_changed(member.instance_id, "terminated")
        self._drop(group, member)
        self._log(group, f"Terminating EC2 instance: {member.instance_id}")
        self._say_of(group, member, "EC2 Instance Terminate Successful")

    def _drop(self, group: FakeAutoScalingGroup, member: InstanceState) -> None:
        for members in (group.instance_states, self._sides[group.name].warm):
            if member in members:
                members.remove(member)
        member.lifecycle_state = "Terminated"

    # -- events --------------------------------------------------------------------------------

    def _state_changed(self, instance_id: str, state: str) -> None:
        """UserGuide/monitoring-instance-state-changes."""
        detail = {"instance-id": instance_id, "state": state}
        self._emit("aws.ec2", "EC2 Instance State-change Notification", detail)

    def _say_of(self, group: FakeAutoScalingGroup, member: InstanceState, kind: str) -> None:
        """userguide/automating-ec2-auto-scaling-with-eventbridge."""
        detail = {"EC2InstanceId": member.instance_id, "AutoScalingGroupName": group.name}
        self._emit("aws.autoscaling", kind, detail)

    def _emit(self, source: str, kind: str, detail: dict[str, Any]) -> None:
        event = {
            "Source": source,
            "DetailType": kind,
            "Detail": json.dumps(detail),
            "Time": self.now(),
        }
        events_backends[ACCOUNT][REGION].put_events([event])

    def _log(
        self, group: FakeAutoScalingGroup, what: str, status: str = "Successful", why: str = ""
    ) -> None:
        self._sides[group.name].activities.insert(
            0,
            {
                "ActivityId": str(uuid.uuid4()),
                "AutoScalingGroupName": group.name,
                "Description": what,
                "Cause": "the capacity was changed",
                "StartTime": self._time(),
                "StatusCode": status,
                "Progress": 100,
                **({"StatusMessage": why} if why else {}),
            },
        )

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)

    def _hook(self, group: FakeAutoScalingGroup, transition: str) -> Any:
        for hook in self.backend().describe_lifecycle_hooks(group.name):
            if hook.lifecycle_transition == f"autoscaling:EC2_INSTANCE_{transition}":
                return hook
        return None

    def backend(self) -> Any:
        return autoscaling_backends[ACCOUNT][REGION]

    def groups(self) -> list[FakeAutoScalingGroup]:
        return list(self.backend().autoscaling_groups.values())
