"""The agent's words to its group as boto3 sends them, and what they do to its machine."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.aws.account import Account, account
from tests.aws.cloud import REGION, Cloud
from worker.node.cloud.auto_scaling import AutoScalingHooks
from worker.node.cloud.port import Hook, HooksUnavailable, NobodyWaits


@dataclass
class Time:
    now: float = 1_700_000_000.0


@dataclass
class Launched:
    """A group whose only machine has booted and waits for its agent's word."""

    account: Account
    time: Time
    hooks: AutoScalingHooks
    instance_id: str

    def state(self, *, after_s: float = 0) -> str:
        self.time.now += after_s
        self.account.cloud.tick()
        members = {it.instance_id: it.lifecycle_state for it in self.account.cloud.members()}
        return members.get(self.instance_id, "gone")


@pytest.fixture
def launched() -> Iterator[Launched]:
    time = Time()
    with account(Cloud(lambda: time.now)) as aws:
        aws.add_group("l4")
        aws.clients.autoscaling.set_desired_capacity(AutoScalingGroupName="l4", DesiredCapacity=1)
        time.now += 26
        aws.cloud.tick()
        (member,) = aws.cloud.members()
        hooks = AutoScalingHooks(group="l4", instance_id=member.instance_id, region=REGION)
        yield Launched(aws, time, hooks, member.instance_id)


async def test_a_machine_serves_once_its_agent_says_so(launched: Launched) -> None:
    assert launched.state() == "Pending:Wait"

    await launched.hooks.complete(Hook.LAUNCHING)

    assert launched.state() == "InService"


async def test_heartbeats_keep_a_machine_that_takes_long(launched: Launched) -> None:
    for _ in range(5):
        assert launched.state(after_s=250) == "Pending:Wait"
        await launched.hooks.heartbeat(Hook.LAUNCHING)

    assert launched.state(after_s=310) != "Pending:Wait"


async def test_a_word_that_nobody_waits_for_is_told_apart(launched: Launched) -> None:
    await launched.hooks.complete(Hook.LAUNCHING)

    with pytest.raises(NobodyWaits):
        await launched.hooks.complete(Hook.LAUNCHING)
    with pytest.raises(NobodyWaits):
        await launched.hooks.heartbeat(Hook.TERMINATING)


async def test_a_refused_word_is_to_be_said_again(launched: Launched) -> None:
    launched.account.cloud.fail("CompleteLifecycleAction", "AccessDenied")

    with pytest.raises(HooksUnavailable, match="AccessDenied"):
        await launched.hooks.complete(Hook.LAUNCHING)
    await launched.hooks.complete(Hook.LAUNCHING)

    assert launched.state() == "InService"
