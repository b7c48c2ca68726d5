"""The minimal example in an AWS account of moto: what it made, the control plane's own provider on
its group, and that nothing is left when it is taken away again."""

import asyncio
import json
from pathlib import Path

import pytest

from control_plane.capacity.ec2.build import ec2_capacity
from control_plane.capacity.ec2.calls import Clients
from control_plane.capacity.ec2.provider import Ec2Capacity
from control_plane.capacity.port import CapacityEvent, Ended, LaunchToken, MachineKind, Need
from control_plane.cli.known_login import recall, remember
from infra.clock import SystemClock
from infra.contracts.base import NodeId
from infra.contracts.stage import Rung
from infra.gpus import Wish
from tests.aws.account import Inline
from tests.support.platform import running_platform
from tests.terraform.applied import Applied
from tests.terraform.machines import Machines, running
from tests.terraform.page import block_of, blocks

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

L4 = MachineKind("l4")
NEED = Need(1 << 30, gpus=Wish(kind=L4, count=1))


def test_a_group_waits_empty_with_tags_hooks_and_a_warm_pool(applied: Applied) -> None:
    group = applied.group()
    autoscaling = applied.account.client("autoscaling")
    name = group["AutoScalingGroupName"]
    hooks = autoscaling.describe_lifecycle_hooks(AutoScalingGroupName=name)["LifecycleHooks"]
    warm = autoscaling.describe_warm_pool(AutoScalingGroupName=name)["WarmPoolConfiguration"]

    assert name == "firstlight-l4-g6-xlarge-on-demand"
    assert (group["MinSize"], group["DesiredCapacity"], group["MaxSize"]) == (0, 0, 2)
    assert {it["Key"]: it["Value"] for it in group["Tags"] if ":" in it["Key"]} == {
        "firstlight:deployment": "firstlight",
        "firstlight:gpu-class": "l4",
        "firstlight:instance-type": "g6.xlarge",
        "firstlight:price-per-hour": "0.8048",
        "firstlight:purchase": "on-demand",
        "firstlight:ttl-s": "86400",
    }
    assert all(it["PropagateAtLaunch"] for it in group["Tags"])
    assert {it["LifecycleHookName"]: it["DefaultResult"] for it in hooks} == {
        "firstlight-launching": "ABANDON",
        "firstlight-terminating": "CONTINUE",
    }
    assert (warm["PoolState"], warm["MinSize"], warm["MaxGroupPreparedCapacity"]) == (
        *("Stopped", 0, 0),
    )
    assert warm["InstanceReusePolicy"] == {"ReuseOnScaleIn": True}


def test_secrets_are_drawn_and_never_in_the_state(applied: Applied) -> None:
    secrets = applied.account.client("secretsmanager")
    named = {it["Name"]: it["ARN"] for it in secrets.list_secrets()["SecretList"]}
    assert sorted(named) == [f"firstlight/{it}" for it in ("api-key", "node-token", "state-url")]
    key, token, url = (
        secrets.get_secret_value(SecretId=named[name])["SecretString"] for name in sorted(named)
    )

    assert named["firstlight/api-key"] == applied.outputs["api_key_secret_arn"]
    assert len(key) == len(token) == 48
    assert key != token
    assert url.startswith("rediss://firstlight:")
    state = applied.state.read_text()
    assert key not in state
    assert token not in state


def test_the_control_plane_is_told_where_its_queue_store_and_results_are(applied: Applied) -> None:
    container, told = applied.container(), applied.told()

    assert container["image"] == f"{applied.outputs['image_urls']['control-plane']}:0.1.0"
    assert told["PLATFORM_CAPACITY"] == "ec2"
    assert told["PLATFORM_EC2_DEPLOYMENT"] == "firstlight"
    assert told["PLATFORM_EC2_QUEUE_URL"].endswith("/firstlight-capacity-events")
    assert {it["name"] for it in container["secrets"]} == {
        "PLATFORM_API_KEY",
        "PLATFORM_NODE_TOKEN",
        "PLATFORM_REDIS_URL",
    }


async def test_the_control_plane_runs_the_group_through_its_warm_pool_and_back(
    applied: Applied,
) -> None:
    account, told = applied.account, applied.told()
    capacity = ec2_capacity(
        told["PLATFORM_EC2_DEPLOYMENT"],
        clock=SystemClock.start(),
        queue_url=told["PLATFORM_EC2_QUEUE_URL"],
        clients=Clients(*map(account.client, ("autoscaling", "ec2", "sqs"))),
        threads=Inline(),
        poll_s=1,
    )
    heard: asyncio.Queue[CapacityEvent] = asyncio.Queue()
    capacity.subscribe(heard.put_nowait)
    await capacity.open()
    try:
        assert capacity.describe() == ()

        await capacity.hold(L4, 1)
        assert agents_work(applied) == ["launching"]
        await capacity.look()
        (stopped,) = rungs(capacity)
        assert rungs(capacity) == {stopped: Rung.STOPPED}
        assert applied.group()["DesiredCapacity"] == 0

        started = await capacity.start(NEED, token=LaunchToken("first"))
        assert started == stopped
        assert agents_work(applied) == ["launching", "launching"], "one serves, one takes its place"
        await capacity.look()
        assert applied.group()["DesiredCapacity"] == 1
        assert sorted(rungs(capacity).values()) == sorted([Rung.NODE, Rung.STOPPED])

        await capacity.stop(stopped)
        assert agents_work(applied) == ["terminating"]
        await capacity.look()
        assert applied.group()["DesiredCapacity"] == 0
        assert set(rungs(capacity).values()) == {Rung.STOPPED}
        assert rungs(capacity)[stopped] is Rung.STOPPED

        again = await capacity.start(NEED, token=LaunchToken("second"))
        agents_work(applied)
        await capacity.look()
        account.cloud.kill(str(again))
        said = await asyncio.wait_for(heard.get(), 30)
        assert said == Ended(NodeId(str(again)), "its instance is terminated")

        await capacity.hold(L4, 0)
        await capacity.look()
        for node_id in rungs(capacity):
            await capacity.terminate(node_id)
        agents_work(applied)
        await capacity.look()
        assert capacity.describe() == ()
        assert applied.group()["DesiredCapacity"] == 0
    finally:
        await capacity.close()


def rungs(capacity: Ec2Capacity) -> dict[NodeId, Rung]:
    return {machine.node_id: machine.rung for machine in capacity.describe()}


def agents_work(applied: Applied) -> list[str]:
    """The agents of all machines whose hooks wait end them; which hooks those were."""
    cloud, groups = applied.account.cloud, applied.account.client("autoscaling")
    ended = []
    cloud.tick()
    for member in tuple(cloud.members()):
        if member.lifecycle_state.endswith(":Wait"):
            hook = "terminating" if member.lifecycle_state.startswith("Term") else "launching"
            groups.complete_lifecycle_action(
                LifecycleHookName=f"firstlight-{hook}",
                AutoScalingGroupName=member.auto_scaling_group_name,
                InstanceId=member.instance_id,
                LifecycleActionResult="CONTINUE",
            )
            ended.append(hook)
    return ended


def test_the_page_leads_from_the_applied_example_to_an_answer(
    applied: Applied, environment: dict[str, str], smollm2_dir: Path, tmp_path: Path
) -> None:
    here, secrets = applied.terraform, applied.account.client("secretsmanager")
    (here.folder / "smollm2").symlink_to(smollm2_dir)
    here.shell(block_of("platform login").script)
    login_file = Path(here.environment["XDG_CONFIG_HOME"]) / "firstlight" / "login.json"
    login = recall(login_file)
    assert login is not None and login.url == applied.outputs["url"]
    told = applied.told() | {
        it["name"]: secrets.get_secret_value(SecretId=it["valueFrom"])["SecretString"]
        for it in applied.container()["secrets"]
    }
    del told["PLATFORM_REDIS_URL"], told["PLATFORM_REDIS_DURABLE"]  # it brings its own
    with running_platform(environment | applied.account.environment | told) as platform:
        remember(login.model_copy(update={"url": platform.url}), login_file)
        machines = Machines(
            applied.account,
            tmp_path,
            platform.url,
            environment | {"PLATFORM_NODE_TOKEN": told["PLATFORM_NODE_TOKEN"]},
        )
        with running(machines):
            assert here.shell(block_of("platform nodes").script) == ""
            here.shell(block_of("aws s3 cp").script)
            answer = here.shell(block_of("platform invoke").script)

    (instance_id,) = machines.agents
    assert instance_id in answer
    assert len(answer.split()) > 3


def test_every_block_of_the_page_is_run_or_said_to_be_left_out() -> None:
    first = [(it.commands[0].split()[0], it.is_left_out) for it in blocks()]

    assert [it for it, is_left_out in first if is_left_out] == [
        "scripts/node-package",
        "control_plane=$(terraform",
    ]
    assert [it for it, is_left_out in first if not is_left_out] == [
        *("cd", "openssl", "printf", "platform", "platform", "aws", "platform", "terraform"),
    ]


def test_what_the_control_plane_decided_is_left_alone_by_the_next_plan(applied: Applied) -> None:
    autoscaling = applied.account.client("autoscaling")
    name = applied.group()["AutoScalingGroupName"]
    autoscaling.put_warm_pool(
        AutoScalingGroupName=name,
        MinSize=1,
        MaxGroupPreparedCapacity=1,
        PoolState="Stopped",
        InstanceReusePolicy={"ReuseOnScaleIn": True},
    )
    autoscaling.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=1)
    agents_work(applied)

    plan = applied.state.with_name("plan")
    applied.terraform("plan", "-target=module.gpu_pool", f"-out={plan}")
    changes = json.loads(applied.terraform("show", "-json", str(plan)))["resource_changes"]
    (change,) = (it["change"] for it in changes if it["type"] == "aws_autoscaling_group")

    assert change["before"]["desired_capacity"] == change["after"]["desired_capacity"] == 1
    for side in ("before", "after"):
        (warm,) = change[side]["warm_pool"]
        assert (warm["min_size"], warm["max_group_prepared_capacity"]) == (1, 1)


def test_destroy_leaves_nothing_behind_not_even_machines_that_run(applied: Applied) -> None:
    states = {it.lifecycle_state for it in applied.account.cloud.members()}
    assert states == {"InService", "Warmed:Stopped"}

    applied.terraform.shell(block_of("terraform destroy").script, seconds=600)

    assert applied.account.inventory() == applied.before
