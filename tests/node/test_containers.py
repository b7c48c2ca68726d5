"""Workers in containers of a real containerd: what they can do, how they end, what is left."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from infra.contracts.model_spec import Resources
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung, Stage
from tests.node.makers import desired, may_sleep
from tests.node.real_node import SCRIPTED, RealNode, real_node
from tests.node.test_processes import draining, ready, scripted
from tests.support.containerd import RunningContainerd, running_containerd
from tests.support.processes import alive
from tests.support.registry import running_registry
from tests.support.worker_image import SCRIPTED as SCRIPTED_IMAGE
from tests.support.worker_image import push

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def containerd() -> Iterator[RunningContainerd]:
    with running_containerd() as running:
        yield running


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """In the registry, and not pulled."""
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield push(SCRIPTED_IMAGE, registry.address, "scripted")


@pytest.fixture
def settings(
    environment: dict[str, str], containerd: RunningContainerd, image: str
) -> dict[str, str]:
    return environment | {
        "PLATFORM_NODE_RUNTIME": "container",
        "PLATFORM_NODE_IMAGE": image,
        "PLATFORM_NODE_CONTAINERD": str(containerd.socket),
        "PLATFORM_NODE_CONTAINERD_NAMESPACE": containerd.namespace,
    }


@pytest.fixture
async def node(
    settings: dict[str, str], containerd: RunningContainerd, image: str
) -> AsyncIterator[RealNode]:
    """With the image pulled, by whichever test came first."""
    if image not in containerd.ctr("images", "ls", "-q"):
        containerd.ctr("images", "pull", "--plain-http", image)
    async with real_node(settings) as running:
        yield running


async def answer(port: int | None) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = await reader.read()
    writer.close()
    return said.decode()


async def test_a_replica_from_zero_pulls_its_image_and_says_what_that_took(
    settings: dict[str, str], containerd: RunningContainerd, image: str, tmp_path: Path
) -> None:
    containerd.ctr("images", "rm", "--sync", image)
    async with real_node(settings) as node:
        await ready(node, scripted(tmp_path))

        report = node.report()
        assert report is not None
        assert report.from_rung is Rung.NODE
        assert [(it.stage, it.source) for it in report.stages[:2]] == [
            (Stage.IMAGE, "origin"),
            (Stage.RUNTIME, "container"),
        ]
        assert (report.stages[0].bytes or 0) > 50 << 20
        for before, after in pairwise(report.stages):
            assert after.started_at == pytest.approx(before.ended_at, abs=1e-5)
        node.fake.want(desired(scripted(tmp_path, "r2"), version=3))
        later = await node.until_state(ReplicaState.READY, "r2")
        assert (later.from_rung, later.stages[0].stage) == (Rung.IMAGE, Stage.RUNTIME)
        assert any(
            replica.progress is not None and replica.progress.stage is Stage.IMAGE
            for sent in node.fake.reports
            for replica in sent.replicas
        )


async def test_a_replica_is_a_container_and_answers_through_the_relay(
    node: RealNode, tmp_path: Path
) -> None:
    port = await ready(node, scripted(tmp_path))

    report = node.report()
    assert report is not None
    assert await answer(port) == "1", "the first process of its own"
    assert [(it.stage, it.source) for it in report.stages] == [
        (Stage.RUNTIME, "container"),
        (Stage.WEIGHTS, "mmap"),
        (Stage.ENGINE, None),
    ]


def tasks(containerd: RunningContainerd) -> list[psutil.Process]:
    """The first process of every container that runs now."""
    lines = containerd.ctr("tasks", "ls").splitlines()[1:]
    found = []
    for line in lines:
        _, pid, status = line.split()
        if status == "RUNNING":
            with suppress(psutil.NoSuchProcess):  # it has ended since
                found.append(psutil.Process(int(pid)))
    return found


def left(containerd: RunningContainerd) -> tuple[list[str], list[str]]:
    """Names of containers, and of snapshots that containers wrote to."""
    snapshots = [line.split() for line in containerd.ctr("snapshots", "ls").splitlines()[1:]]
    return (
        containerd.ctr("containers", "ls", "-q").split(),
        [words[0] for words in snapshots if words[-1] == "Active"],
    )


def of_process(process: psutil.Process, name: str) -> str:
    return Path(f"/proc/{process.pid}/{name}").read_text()


def status_of(process: psutil.Process) -> dict[str, str]:
    lines = of_process(process, "status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_a_replica_has_no_rights_and_no_network(
    node: RealNode, containerd: RunningContainerd, tmp_path: Path
) -> None:
    paths = ["/here", "/usr/here", "/run/firstlight/here", "/models/here", "/dev/here", "/tmp/here"]
    port = await ready(
        node,
        scripted(tmp_path, reaches=["127.0.0.1", node.control_plane.port], touches=paths),
    )

    (process,) = tasks(containerd)
    status = status_of(process)
    assert status["CapEff"] == status["CapBnd"] == "0" * 16
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(status["Uid"].split()) == {"65532"}
    await node.until(
        lambda: {"not reached: ECONNREFUSED", "made ['/tmp/here']"} <= set(log_of(node)),
        f"its log says so: {log_of(node)}",
    )
    interfaces = of_process(process, "net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert of_process(process, "net/route").count("\n") == 1, "no route"
    assert await answer(port) == "1", "and yet it is reached"


async def test_a_replica_that_needs_more_memory_than_its_own_is_killed_and_says_why(
    node: RealNode, tmp_path: Path
) -> None:
    greedy = scripted(tmp_path, uses_mib=512).model_copy(
        update={"resources": Resources(memory_mib=128)}
    )
    node.fake.want(desired(greedy))

    report = await node.until_state(ReplicaState.FAILED)

    assert report.failure is not None
    assert report.failure.code == "replica-out-of-memory"
    assert "its 128 MiB" in report.failure.detail


async def test_a_parked_container_is_claimed_and_sees_its_model_only_then(
    node: RealNode, containerd: RunningContainerd, tmp_path: Path
) -> None:
    node.fake.want(desired(standby=1))
    await node.until_parked(1)
    (process,) = tasks(containerd)
    assert "/models/" not in of_process(process, "mounts")

    node.fake.want(desired(scripted(tmp_path), version=2))
    report = await node.until_state(ReplicaState.READY)

    assert report.from_rung is Rung.RUNTIME
    assert [(it.stage, it.source) for it in report.stages] == [
        (Stage.RUNTIME, "parked"),
        (Stage.WEIGHTS, "mmap"),
        (Stage.ENGINE, None),
    ]
    mounted = of_process(process, "mounts")
    assert re.search(r" /models/models--model \w+ ro,nosuid,nodev,noexec", mounted)


async def test_a_container_that_drained_sleeps_and_wakes(
    node: RealNode, containerd: RunningContainerd, tmp_path: Path
) -> None:
    sleepy = scripted(tmp_path).model_copy(update={"sleep_s": 60})
    await ready(node, sleepy)
    node.fake.want(may_sleep(desired(draining(sleepy), version=3)))
    await node.until_state(ReplicaState.STOPPED)
    again = scripted(tmp_path, "r2").model_copy(update={"source": sleepy.source, "sleep_s": 60})

    node.fake.want(may_sleep(desired(again, version=4)))

    report = await node.until_state(ReplicaState.READY, "r2")
    assert report.from_rung is Rung.WEIGHTS
    assert await answer(report.port) == "1"
    assert len(tasks(containerd)) == 1


async def test_a_replica_whose_shim_is_killed_is_lost_and_nothing_is_left(
    node: RealNode, containerd: RunningContainerd, tmp_path: Path
) -> None:
    await ready(node, scripted(tmp_path))
    (process,) = tasks(containerd)

    process.parent().kill()

    await node.until_state(ReplicaState.LOST)
    await node.until(lambda: not alive([process]), "its process is gone")
    await node.until(lambda: left(containerd) == ([], []), "containerd has forgotten it")


async def test_replicas_outlive_containerd_and_are_removed_when_it_is_back(
    node: RealNode, containerd: RunningContainerd, tmp_path: Path
) -> None:
    port = await ready(node, scripted(tmp_path))
    (process,) = tasks(containerd)
    containerd.kill()
    try:
        assert await answer(port) == "1"

        node.fake.want(desired(version=3))  # it is listed no more: killed

        await node.until(lambda: not alive([process]), "its process is gone")
        await node.until_state(ReplicaState.STOPPED)
    finally:
        containerd.start()
    await node.until(lambda: left(containerd) == ([], []), "containerd has forgotten it")


@pytest.mark.parametrize("moment", ["launched", "serving"])
async def test_an_agent_that_is_killed_leaves_no_process_and_the_next_one_removes_the_rest(
    settings: dict[str, str], containerd: RunningContainerd, tmp_path: Path, moment: str
) -> None:
    async with real_node(settings) as node:
        node.fake.want(desired(standby=1))
        match moment:
            case "launched":
                await node.until(lambda: left(containerd)[0], "there is a container")
            case _:
                await ready(node, scripted(tmp_path))
        node.process.kill()
        node.process.wait()
        node.fake.reports.clear()

        await node.until(lambda: not tasks(containerd), "no process is left")

        node.fake.want(desired(version=9))
        node.start(SCRIPTED, settings)
        node.fake.want(desired(standby=1, version=10))
        await node.until_parked(1)
        assert len(left(containerd)[0]) == 1
    assert left(containerd) == ([], [])


async def test_an_image_that_is_not_there_fails_the_replica_by_its_name(
    settings: dict[str, str], tmp_path: Path
) -> None:
    missing = settings | {"PLATFORM_NODE_IMAGE": "127.0.0.1:1/nothing:here"}
    async with real_node(missing) as node:
        node.fake.want(desired(scripted(tmp_path)))

        report = await node.until_state(ReplicaState.FAILED)

    assert report.failure is not None
    assert report.failure.code == "image-unavailable"
    assert "127.0.0.1:1/nothing:here" in report.failure.detail


def log_of(node: RealNode) -> list[str]:
    return [line.text for report in node.fake.reports for line in report.logs]
