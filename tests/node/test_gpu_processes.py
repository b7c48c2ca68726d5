"""GPUs through the real agent and real processes; only NVIDIA's library is none of NVIDIA's."""

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.contracts.node import Gpu, ReplicaAssignment
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Rung
from tests.node.makers import assignment, desired, may_sleep
from tests.node.real_node import RealNode, kill, real_node
from tests.support.nvml import GIB, LOST, FakeGpu, FakeNvml

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

A, B = FakeGpu("GPU-a"), FakeGpu("GPU-b")


@pytest.fixture
def nvml(tmp_path: Path) -> FakeNvml:
    folder = tmp_path / "nvml"
    folder.mkdir()
    return FakeNvml(folder, A, B)


@pytest.fixture
async def node(environment: dict[str, str], nvml: FakeNvml) -> AsyncIterator[RealNode]:
    async with real_node(environment | nvml.environment()) as running:
        yield running


def scripted(
    folder: Path, name: str = "r1", *, gpus: int = 1, sleep_s: float = 0, **script: Any
) -> ReplicaAssignment:
    """Replicas of one number of GPUs are of one model."""
    model = folder / f"model-{gpus}"
    model.mkdir(exist_ok=True)
    (model / "script.json").write_text(json.dumps({"gpus": True} | script))
    return assignment(name, uri=f"file://{model}", gpus=gpus, sleep_s=sleep_s)


def gpus(node: RealNode) -> dict[str, Gpu]:
    """As the control plane was told of them last."""
    told = [node.fake.registrations[-1].gpus]
    told += [report.gpus for report in node.fake.reports if report.gpus is not None]
    return {gpu.gpu_id: gpu for gpu in told[-1]}


def holders(node: RealNode) -> dict[str, str | None]:
    return {gpu_id: gpu.replica_id for gpu_id, gpu in gpus(node).items()}


def seen_by(node: RealNode, replica: str = "r1") -> str:
    """What CUDA_VISIBLE_DEVICES was in the replica's process when it began to load."""
    lines = (node.state_dir / "logs" / f"{replica}.log").read_text().splitlines()
    return next(line for line in lines if line.startswith("sees "))


async def test_the_node_tells_of_its_gpus(node: RealNode) -> None:
    told = node.fake.registrations[0].gpus
    assert [(gpu.gpu_id, gpu.kind, gpu.memory_bytes, gpu.driver) for gpu in told] == [
        ("GPU-a", "l4", 24 * GIB, "570.86.10"),
        ("GPU-b", "l4", 24 * GIB, "570.86.10"),
    ]


@pytest.mark.parametrize("standby", [0, 1])
async def test_each_replica_sees_its_own_gpu_and_one_without_sees_none(
    node: RealNode, tmp_path: Path, standby: int
) -> None:
    node.fake.want(desired(standby=standby, version=1))
    await node.until_parked(standby)
    replicas = [scripted(tmp_path, f"r{n}", gpus=g) for n, g in enumerate((1, 0, 1))]
    node.fake.want(desired(*replicas, standby=standby, version=2))
    for replica in replicas:
        await node.until_state(ReplicaState.READY, replica.replica_id)

    assert seen_by(node, "r0") == "sees 'GPU-a' of ('GPU-a',)"
    assert seen_by(node, "r1") == "sees '' of ()"
    assert seen_by(node, "r2") == "sees 'GPU-b' of ('GPU-b',)"
    assert holders(node) == {"GPU-a": "r0", "GPU-b": "r2"}
    for parked in node.named("fl-standby") + node.named("fl-zygote"):
        assert parked.environ()["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("standby", [0, 1])
async def test_ranks_are_forked_with_their_replica_and_end_with_it(
    node: RealNode, tmp_path: Path, standby: int
) -> None:
    node.fake.want(desired(standby=standby, version=1))
    await node.until_parked(standby)
    node.fake.want(desired(scripted(tmp_path, gpus=2), standby=standby, version=2))
    await node.until_state(ReplicaState.READY)
    [rank], [replica] = node.named("fl-rank"), node.named("fl-replica")
    assert rank.ppid() == replica.pid
    assert len(node.named("fl-standby")) == standby  # the parked one is left for others

    replica.kill()

    await node.until_state(ReplicaState.LOST)
    assert not rank.is_running()


async def test_ranks_own_a_gpu_each_until_the_last_of_them_is_gone(
    node: RealNode, tmp_path: Path
) -> None:
    node.fake.want(desired(scripted(tmp_path, gpus=2, ranks=1), version=1))
    await node.until_state(ReplicaState.READY)
    assert seen_by(node) == "sees 'GPU-a' of ('GPU-a', 'GPU-b')"
    await node.until(lambda: len(node.named("fl-rank")) == 2, "it has another rank")
    strays = node.named("fl-rank")

    kill(node.named("fl-replica"))
    await node.until_state(ReplicaState.LOST)

    assert not any(rank.is_running() for rank in strays)
    node.fake.want(desired(scripted(tmp_path, "r2", gpus=2), version=2))
    await node.until_state(ReplicaState.READY, "r2")
    assert holders(node) == {"GPU-a": "r2", "GPU-b": "r2"}


async def test_a_killed_replicas_gpu_is_given_to_the_next_one(
    node: RealNode, tmp_path: Path
) -> None:
    both = [scripted(tmp_path, "r1"), scripted(tmp_path, "r2")]
    node.fake.want(desired(*both, version=1))
    for replica in both:
        await node.until_state(ReplicaState.READY, replica.replica_id)
    third = scripted(tmp_path, "r3")
    node.fake.want(desired(*both, third, version=2))
    await node.until_state(ReplicaState.STARTING, "r3")

    [taken] = [gpu_id for gpu_id, replica in holders(node).items() if replica == "r1"]
    port = node.report("r1").port  # type: ignore[union-attr]
    kill([it for it in node.named("fl-replica") if _listens(it, port)])

    await node.until_state(ReplicaState.READY, "r3")
    assert seen_by(node, "r3") == f"sees {taken!r} of ({taken!r},)"


async def test_gpus_come_free_when_a_drained_replicas_last_process_is_gone(
    node: RealNode, tmp_path: Path, nvml: FakeNvml
) -> None:
    replica = scripted(tmp_path, gpus=2)
    node.fake.want(desired(replica, version=1))
    await node.until_state(ReplicaState.READY)
    nvml.say(FakeGpu("GPU-a", used=20 * GIB), FakeGpu("GPU-b", used=20 * GIB))
    await node.until(lambda: gpus(node)["GPU-b"].used_bytes, "it is told")
    nvml.say(A, B)

    node.fake.want(desired(replica.model_copy(update={"desired": "drain"}), version=2))
    await node.until_state(ReplicaState.STOPPED)
    node.fake.want(desired(scripted(tmp_path, "r2", gpus=2), version=3))

    await node.until_state(ReplicaState.READY, "r2")


async def test_a_gpu_that_others_use_is_shown_and_given_to_nobody_until_they_are_gone(
    node: RealNode, tmp_path: Path, nvml: FakeNvml
) -> None:
    nvml.say(FakeGpu("GPU-a", used=3 * GIB), B)
    await node.until(lambda: gpus(node)["GPU-a"].trouble, "it is told")
    assert gpus(node)["GPU-a"].trouble == "others use 3.0 GiB of it"

    node.fake.want(desired(scripted(tmp_path, "r1"), scripted(tmp_path, "r2"), version=1))
    await node.until_state(ReplicaState.READY, "r1")
    assert holders(node) == {"GPU-a": None, "GPU-b": "r1"}
    assert node.report("r2").state is ReplicaState.STARTING  # type: ignore[union-attr]

    nvml.say(A, B)
    await node.until_state(ReplicaState.READY, "r2")
    assert holders(node) == {"GPU-a": "r2", "GPU-b": "r1"}


async def test_a_lost_gpu_takes_neither_the_agent_nor_the_others_with_it(
    node: RealNode, tmp_path: Path, nvml: FakeNvml
) -> None:
    nvml.say(FakeGpu("GPU-a", error=LOST), B)
    await node.until(lambda: gpus(node)["GPU-a"].trouble, "it is told")
    assert gpus(node)["GPU-a"].trouble == "NVML: GPU is lost"

    node.fake.want(desired(scripted(tmp_path), version=1))
    await node.until_state(ReplicaState.READY)
    assert holders(node) == {"GPU-a": None, "GPU-b": "r1"}


async def test_a_gpu_that_is_lost_under_a_replica_ends_it_and_other_faults_do_not(
    node: RealNode, tmp_path: Path, nvml: FakeNvml
) -> None:
    node.fake.want(desired(scripted(tmp_path), version=1))
    await node.until_state(ReplicaState.READY)
    assert holders(node) == {"GPU-a": "r1", "GPU-b": None}

    nvml.say(A, B, xids=((1, 79), (0, 31)))  # the other one, and a fault of the program's
    await node.until(lambda: gpus(node)["GPU-b"].trouble, "it is told")
    assert node.report().state is ReplicaState.READY  # type: ignore[union-attr]
    nvml.say(FakeGpu("GPU-a", error=LOST), B)

    report = await node.until_state(ReplicaState.LOST)
    assert report.failure is not None and report.failure.code == "replica-lost"
    assert report.failure.detail == "GPU-a was lost under it: NVML: GPU is lost"
    await node.until(lambda: not node.named("fl-replica"), "its process is gone")


async def test_a_replica_that_waits_in_vain_fails_and_says_for_what(
    node: RealNode, tmp_path: Path
) -> None:
    node.fake.want(desired(scripted(tmp_path, gpus=2), version=1))
    await node.until_state(ReplicaState.READY)
    node.fake.want(desired(scripted(tmp_path, gpus=2), scripted(tmp_path, "r2"), version=2))

    await node.until(lambda: _is_in(node, "r2", ReplicaState.FAILED), "it fails", seconds=60)

    failure = node.report("r2").failure  # type: ignore[union-attr]
    assert failure is not None and failure.code == "no-capacity" and not failure.is_permanent
    assert "GPU-a (l4): r1, GPU-b (l4): r1" in failure.detail


async def test_a_sleeper_keeps_its_gpu_wakes_on_it_and_gives_way_to_who_needs_it(
    node: RealNode, tmp_path: Path
) -> None:
    replica = scripted(tmp_path, gpus=2, sleep_s=60)
    node.fake.want(desired(replica, version=1))
    await node.until_state(ReplicaState.READY)

    async def put_to_sleep(replica: ReplicaAssignment, version: int) -> None:
        draining = replica.model_copy(update={"desired": "drain"})
        node.fake.want(may_sleep(desired(draining, version=version)))
        await node.until_state(ReplicaState.STOPPED, replica.replica_id)
        await node.until(lambda: gpus(node)["GPU-a"].sleeper == "tiny@1", "it sleeps on its GPUs")

    await put_to_sleep(replica, 2)
    again = replica.model_copy(update={"replica_id": "r2"})
    node.fake.want(may_sleep(desired(again, version=3)))
    report = await node.until_state(ReplicaState.READY, "r2")
    assert report.from_rung is Rung.WEIGHTS
    assert holders(node) == {"GPU-a": "r2", "GPU-b": "r2"}

    await put_to_sleep(again, 4)
    node.fake.want(may_sleep(desired(scripted(tmp_path, "r3"), version=5)))
    await node.until_state(ReplicaState.READY, "r3")
    assert node.named("fl-sleeper") == []
    assert holders(node) == {"GPU-a": "r3", "GPU-b": None}


async def test_an_agent_that_is_killed_leaves_no_gpu_taken(
    environment: dict[str, str], nvml: FakeNvml, tmp_path: Path
) -> None:
    async with real_node(environment | nvml.environment()) as node:
        node.fake.want(desired(scripted(tmp_path, gpus=2), version=1))
        await node.until_state(ReplicaState.READY)
        before = node.named("fl-replica")
        command = psutil.Process(node.process.pid).cmdline()

        node.process.send_signal(signal.SIGKILL)
        await node.until(lambda: not [it for it in before if it.is_running()], "its replica ends")
        node.fake.want(desired(version=2))
        node.fake.forget_nodes()
        node.process.wait()
        node.start(tuple(command), environment | nvml.environment())
        await node.until(lambda: len(node.fake.registrations) > 1, "another agent registers")

        assert [gpu.replica_id for gpu in node.fake.registrations[-1].gpus] == [None, None]
        node.fake.want(desired(scripted(tmp_path, "r2", gpus=2), version=3))
        await node.until_state(ReplicaState.READY, "r2")


async def test_random_starts_and_kills_never_share_nor_lose_a_gpu(
    node: RealNode, tmp_path: Path
) -> None:
    dice, wanted = random.Random(7), {}
    node.fake.want(desired(standby=1, version=1))
    await node.until_parked(1)
    for turn in range(40):
        name = f"r{turn}"
        wanted[name] = scripted(tmp_path, name, gpus=dice.choice([1, 1, 2]))
        for gone in [it for it in wanted if it != name and dice.random() < 0.4]:
            del wanted[gone]
        node.fake.want(desired(*wanted.values(), standby=1, version=turn + 2))
        await asyncio.sleep(dice.choice([0, 0.02, 0.1]))
        if dice.random() < 0.4 and (victims := node.named("fl-replica")):
            kill([dice.choice(victims)])
        _assert_each_sees_its_own(node)

    last = scripted(tmp_path, "last", gpus=2)
    node.fake.want(desired(last, standby=1, version=100))
    await node.until_state(ReplicaState.READY, "last")
    assert holders(node) == {"GPU-a": "last", "GPU-b": "last"}


def _assert_each_sees_its_own(node: RealNode) -> None:
    """No two processes that live are those of replicas that were given the same GPU."""
    given: dict[int, str] = {}
    for process in node.named("fl-replica"):
        try:
            given[process.pid] = Path(f"/proc/{process.pid}/fd/1").readlink().stem
        except OSError:
            continue
    seen = [seen for name in given.values() if (seen := _gpus_of(node, name))]
    together = [gpu for gpus in seen for gpu in gpus]
    alive = {it.pid for it in node.named("fl-replica")}
    if alive >= given.keys():  # else one of them has gone since, and its GPU may be another's
        assert len(together) == len(set(together)), given


def _gpus_of(node: RealNode, replica: str) -> tuple[str, ...]:
    try:
        return tuple(
            json.loads(
                seen_by(node, replica).partition(" of ")[2].replace(",)", ")").translate(_AS_JSON)
            )
        )
    except (StopIteration, OSError):
        return ()


_AS_JSON = str.maketrans({"(": "[", ")": "]", "'": '"'})


def _is_in(node: RealNode, replica: str, state: ReplicaState) -> bool:
    report = node.report(replica)
    return report is not None and report.state is state


def _listens(process: psutil.Process, port: int | None) -> bool:
    return any(it.laddr.port == port for it in process.net_connections() if it.status == "LISTEN")
