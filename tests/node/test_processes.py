"""Real processes, killed at every stage: what is reported, what lives on, what is left."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.contracts.node import ReplicaAssignment
from infra.contracts.revision import ReplicaState, SourceFile
from infra.contracts.stage import Rung, Stage
from tests.node.makers import assignment, desired, may_sleep
from tests.node.real_node import SCRIPTED, RealNode, kill, real_node
from tests.support.complaints import complaints
from tests.support.processes import alive

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]


@pytest.fixture
async def node(environment: dict[str, str]) -> AsyncIterator[RealNode]:
    async with real_node(environment) as running:
        yield running


def scripted(folder: Path, name: str = "r1", **script: Any) -> ReplicaAssignment:
    model = folder / f"model-{name}"
    model.mkdir(exist_ok=True)
    (model / "script.json").write_text(json.dumps(script))
    return assignment(name, uri=f"file://{model}")


def draining(replica: ReplicaAssignment, deadline_s: float = 5) -> ReplicaAssignment:
    return replica.model_copy(update={"desired": "drain", "drain_deadline_s": deadline_s})


async def answer(port: int | None) -> int:
    """The pid of the replica that answers there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    pid = int(await reader.read())
    writer.close()
    return pid


async def ready(node: RealNode, replica: ReplicaAssignment, *, standby: int = 0) -> int:
    """Brings the replica to READY; its port."""
    if standby:
        node.fake.want(desired(standby=standby, version=1))
        await node.until_parked(standby)
    node.fake.want(desired(replica, standby=standby, version=2))
    report = await node.until_state(ReplicaState.READY)
    assert report.port is not None
    return report.port


async def test_a_parked_worker_serves_within_milliseconds_of_being_claimed(
    node: RealNode, tmp_path: Path
) -> None:
    port = await ready(node, scripted(tmp_path), standby=1)

    report = node.report()
    assert report is not None
    assert report.from_rung is Rung.RUNTIME
    assert [(t.stage, t.source) for t in report.stages] == [
        (Stage.RUNTIME, "parked"),
        (Stage.WEIGHTS, "mmap"),
        (Stage.ENGINE, None),
    ]
    assert sum(timing.seconds for timing in report.stages) < 0.1
    assert report.stages[1].bytes == 1234
    assert [process.pid for process in node.named("fl-replica")] == [await answer(port)]


async def test_stages_leave_no_gap(node: RealNode, tmp_path: Path) -> None:
    await ready(node, scripted(tmp_path, weights_s=0.1, engine_s=0.05))

    report = node.report()
    assert report is not None
    for before, after in zip(report.stages, report.stages[1:], strict=False):
        assert after.started_at == pytest.approx(before.ended_at, abs=1e-5)
    assert report.stages[0].source == "spawn"


async def test_progress_reaches_the_control_plane(node: RealNode, tmp_path: Path) -> None:
    await ready(node, scripted(tmp_path, weights_s=0.6))

    fractions = [
        replica.progress.fraction
        for sent in node.fake.reports
        for replica in sent.replicas
        if replica.progress is not None and replica.progress.stage is Stage.WEIGHTS
    ]
    assert len(fractions) >= 3
    assert fractions == sorted(fractions)


async def test_the_pool_refills_behind_a_claim(node: RealNode, tmp_path: Path) -> None:
    await ready(node, scripted(tmp_path), standby=1)

    await node.until_parked(1)
    assert len(node.named("fl-standby")) == 1


async def test_workers_are_children_of_the_agent_and_the_zygote_has_one_thread(
    node: RealNode,
) -> None:
    node.fake.want(desired(standby=2))
    await node.until_parked(2)

    for worker in node.named("fl-standby"):
        assert worker.ppid() == node.process.pid
    (zygote,) = node.named("fl-zygote")
    assert (zygote.num_threads(), zygote.children()) == (1, [])


async def test_no_worker_inherits_the_nodes_token(node: RealNode) -> None:
    node.fake.want(desired(standby=1))
    await node.until_parked(1)

    for worker in node.named("fl-standby") + node.named("fl-zygote"):
        assert not [name for name in worker.environ() if name.startswith("PLATFORM_")]


async def test_a_killed_parked_worker_is_replaced(node: RealNode) -> None:
    node.fake.want(desired(standby=1))
    await node.until_parked(1)
    killed = node.named("fl-standby")

    kill(killed)

    await node.until(
        lambda: [p.pid for p in node.named("fl-standby")] not in ([], [killed[0].pid]), "another"
    )
    await node.until_parked(1)


@pytest.mark.parametrize("standby", [0, 1])
@pytest.mark.parametrize(
    ("stage", "script"),
    [(Stage.WEIGHTS, {"weights_s": 30}), (Stage.ENGINE, {"engine_s": 30})],
)
async def test_a_replica_killed_while_it_climbs_has_failed(
    node: RealNode, tmp_path: Path, standby: int, stage: Stage, script: dict[str, Any]
) -> None:
    node.fake.want(desired(standby=standby, version=1))
    await node.until_parked(standby)
    node.fake.want(
        desired(scripted(tmp_path, print=["loading"], **script), standby=standby, version=2)
    )
    done = 1 if stage is Stage.WEIGHTS else 2
    await node.until(lambda: (r := node.report()) and len(r.stages) == done, f"in {stage}")
    await asyncio.sleep(0.1)

    kill(node.named("fl-replica"))

    report = await node.until_state(ReplicaState.FAILED)
    assert report.failure is not None
    assert report.failure.code == "replica-failed"
    assert report.failure.detail == "killed by SIGKILL; last log line: loading"
    assert not report.failure.is_permanent


async def test_a_replica_killed_while_it_is_spawned_has_failed(
    node: RealNode, tmp_path: Path
) -> None:
    node.fake.want(desired(scripted(tmp_path)))
    await node.until(
        lambda: [p for p in node.named("fl-replica") if p.ppid() == node.process.pid], "spawned"
    )

    kill(node.named("fl-replica"))

    await node.until(
        lambda: (r := node.report()) and r.state in {ReplicaState.FAILED, ReplicaState.LOST},
        "reported",
    )


async def test_a_killed_ready_replica_is_lost(node: RealNode, tmp_path: Path) -> None:
    await ready(node, scripted(tmp_path, print=["serving"]), standby=1)

    kill(node.named("fl-replica"))

    report = await node.until_state(ReplicaState.LOST)
    assert report.failure is not None
    assert report.failure.code == "replica-lost"
    assert report.failure.detail == "killed by SIGKILL; last log line: serving"


async def test_a_crash_in_native_code_says_so(node: RealNode, tmp_path: Path) -> None:
    node.fake.want(desired(scripted(tmp_path, signal="SIGSEGV")))

    report = await node.until_state(ReplicaState.FAILED)

    assert report.failure is not None
    assert report.failure.detail.startswith("killed by SIGSEGV; last log line: ")


@pytest.mark.parametrize(
    ("error", "code", "is_permanent"),
    [
        ("UnsupportedModel", "unsupported-model", True),
        ("SourceInvalid", "source-invalid", True),
        ("DependencyMissing", "dependency-missing", True),
        ("SourceUnavailable", "source-unavailable", False),
    ],
)
async def test_an_error_of_the_climb_is_typed(
    node: RealNode, tmp_path: Path, error: str, code: str, is_permanent: bool
) -> None:
    node.fake.want(desired(scripted(tmp_path, fails=error, detail="no such thing")))

    report = await node.until_state(ReplicaState.FAILED)

    assert report.failure is not None
    assert (report.failure.code, report.failure.is_permanent) == (code, is_permanent)
    assert report.failure.detail == "no such thing"
    await node.until(lambda: not node.named("fl-replica"), "it has exited")


async def test_the_death_of_the_engine_ends_the_replica(node: RealNode, tmp_path: Path) -> None:
    await ready(node, scripted(tmp_path, engine_dies_after_s=0.3))

    report = await node.until_state(ReplicaState.LOST)

    assert report.failure is not None
    assert "the engine came to a bad end" in report.failure.detail
    await node.until(lambda: not node.named("fl-replica"), "it has exited")


async def test_draining_finishes_and_ends(node: RealNode, tmp_path: Path) -> None:
    replica = scripted(tmp_path, drain_s=0.3)
    await ready(node, replica)

    node.fake.want(desired(draining(replica), version=3))

    await node.until_state(ReplicaState.DRAINING)
    assert node.named("fl-replica")
    report = await node.until_state(ReplicaState.STOPPED)
    assert report.failure is None
    assert not alive(node.named("fl-replica"))


async def asleep(
    node: RealNode, replica: ReplicaAssignment, *, sleep_s: float = 60, standby: int = 1
) -> psutil.Process:
    """Brings the replica to READY and drains it; the process that sleeps now."""
    replica = replica.model_copy(update={"sleep_s": sleep_s})
    await ready(node, replica, standby=standby)
    node.fake.want(may_sleep(desired(draining(replica), standby=standby, version=3)))
    await node.until_state(ReplicaState.STOPPED)
    node.fake.want(may_sleep(desired(standby=standby, version=4)))
    await node.until(lambda: node.fake.reports[-1].sleepers, "a sleeper is reported")
    (sleeper,) = node.named("fl-sleeper")
    return sleeper


async def test_a_process_that_sleeps_wakes_as_another_replica(
    node: RealNode, tmp_path: Path
) -> None:
    replica = scripted(tmp_path, print=["climbing"])
    sleeper = await asleep(node, replica)
    first = node.report()
    assert first is not None and first.port is not None
    with pytest.raises(ConnectionRefusedError):
        await answer(first.port)

    again = replica.model_copy(update={"replica_id": "r2", "sleep_s": 600})
    node.fake.want(may_sleep(desired(again, standby=1, version=5)))
    report = await node.until_state(ReplicaState.READY, "r2")

    assert await answer(report.port) == sleeper.pid
    assert report.from_rung is Rung.WEIGHTS
    assert report.stages[0].source == "asleep"
    for before, after in zip(report.stages, report.stages[1:], strict=False):
        assert after.started_at == pytest.approx(before.ended_at, abs=1e-5)
    logs = node.state_dir / "logs"
    assert (logs / "r2.log").read_text().startswith("climbing\n")
    assert [process.pid for process in node.named("fl-replica")] == [sleeper.pid]


async def test_a_sleeper_uses_no_cpu(node: RealNode, tmp_path: Path) -> None:
    sleeper = await asleep(node, scripted(tmp_path))
    await asyncio.sleep(0.2)
    before = sleeper.cpu_times()

    await asyncio.sleep(1)

    after = sleeper.cpu_times()
    assert after.user + after.system == before.user + before.system


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ({"is_cut_off": True}, ReplicaState.STOPPED),
        ({"engine_dies_after_s": 0.7}, ReplicaState.LOST),
    ],
)
async def test_a_replica_that_cut_requests_off_or_failed_does_not_sleep(
    node: RealNode, tmp_path: Path, script: dict[str, Any], end: ReplicaState
) -> None:
    replica = scripted(tmp_path, drain_s=1.5, **script).model_copy(update={"sleep_s": 600})
    await ready(node, replica)

    node.fake.want(may_sleep(desired(draining(replica), version=3)))

    await node.until_state(end)
    await node.until(lambda: not node.named("fl-replica"), "it has exited")
    assert node.fake.reports[-1].sleepers == ()
    assert node.named("fl-sleeper") == []


async def test_a_sleeper_is_gone_when_its_time_is_over(node: RealNode, tmp_path: Path) -> None:
    sleeper = await asleep(node, scripted(tmp_path), sleep_s=1)

    await node.until(lambda: not alive([sleeper]), "it is gone")

    await node.until(lambda: not node.fake.reports[-1].sleepers, "it is reported")
    assert len(node.named("fl-standby")) == 1


async def test_a_killed_sleeper_is_forgotten_and_a_parked_worker_serves(
    node: RealNode, tmp_path: Path
) -> None:
    replica = scripted(tmp_path)
    sleeper = await asleep(node, replica)

    sleeper.kill()
    await node.until(lambda: not node.fake.reports[-1].sleepers, "it is reported")
    await node.until_parked(1)

    again = replica.model_copy(update={"replica_id": "r2"})
    node.fake.want(may_sleep(desired(again, standby=1, version=5)))
    report = await node.until_state(ReplicaState.READY, "r2")
    assert report.from_rung is Rung.RUNTIME


async def test_a_sleeper_outlives_the_fork_server_and_not_the_agent(
    node: RealNode, tmp_path: Path
) -> None:
    replica = scripted(tmp_path)
    sleeper = await asleep(node, replica)
    before = node.named("fl-zygote")
    kill(before)
    await node.until(
        lambda: [p.pid for p in node.named("fl-zygote")] not in ([], [before[0].pid]),
        "a new zygote",
    )
    again = replica.model_copy(update={"replica_id": "r2", "sleep_s": 600})
    node.fake.want(may_sleep(desired(again, standby=1, version=5)))
    report = await node.until_state(ReplicaState.READY, "r2")
    assert await answer(report.port) == sleeper.pid
    node.fake.want(may_sleep(desired(draining(again), standby=1, version=6)))
    await node.until_state(ReplicaState.STOPPED, "r2")
    assert [process.pid for process in node.named("fl-sleeper")] == [sleeper.pid]

    node.process.send_signal(signal.SIGKILL)

    await node.until_nothing_is_left()


async def test_a_replica_killed_while_it_drains_is_lost(node: RealNode, tmp_path: Path) -> None:
    replica = scripted(tmp_path, drain_s=30)
    await ready(node, replica)
    node.fake.want(desired(draining(replica, deadline_s=60), version=3))
    await node.until_state(ReplicaState.DRAINING)

    kill(node.named("fl-replica"))

    await node.until_state(ReplicaState.LOST)


async def test_a_replica_that_is_taken_away_while_it_climbs_is_gone_at_once(
    node: RealNode, tmp_path: Path
) -> None:
    node.fake.want(desired(scripted(tmp_path, weights_s=600), version=1))
    await node.until(lambda: (r := node.report()) and r.stages, "climbing")

    node.fake.want(desired(version=2))

    await node.until(lambda: not node.named("fl-replica"), "gone")


async def test_a_killed_zygote_is_replaced_and_workers_live_on(
    node: RealNode, tmp_path: Path
) -> None:
    port = await ready(node, scripted(tmp_path), standby=1)
    await node.until_parked(1)
    before = node.named("fl-zygote")
    parked = {process.pid for process in node.named("fl-standby")}

    kill(before)

    await node.until(
        lambda: [p.pid for p in node.named("fl-zygote")] not in ([], [before[0].pid]),
        "a new zygote",
    )
    assert {process.pid for process in node.named("fl-standby")} == parked
    assert await answer(port) == node.named("fl-replica")[0].pid
    kill(node.named("fl-standby"))
    await node.until(lambda: {p.pid for p in node.named("fl-standby")} - parked, "it forks")


async def test_zygotes_killed_again_and_again_leave_nothing_and_do_no_harm(
    node: RealNode, tmp_path: Path
) -> None:
    port = await ready(node, scripted(tmp_path), standby=3)
    for _ in range(6):
        await node.until(lambda: (found := node.named("fl-zygote")) and kill(found), "a zygote")
        if parked := node.named("fl-standby"):
            kill(parked[:1])

    await node.until_parked(3)

    assert await answer(port) > 0
    await node.until(lambda: len(node.named("fl-standby")) == 3, "exactly three")
    await node.until(
        lambda: [p for p in node.seen if p.is_running() and p.status() == "zombie"] == [],
        "no zombies",
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", ["booting", "parked", "weights", "ready", "draining"])
async def test_nothing_outlives_the_agent(
    node: RealNode, tmp_path: Path, stage: str, how: signal.Signals
) -> None:
    script = {"weights_s": 600 if stage == "weights" else 0, "drain_s": 600}
    replica = scripted(tmp_path, **script)
    node.fake.want(desired(standby=2, version=1))
    if stage != "booting":
        await node.until_parked(2)
    if stage in {"weights", "ready", "draining"}:
        node.fake.want(desired(replica, standby=2, version=2))
        done = 1 if stage == "weights" else 3
        await node.until(lambda: (r := node.report()) and len(r.stages) == done, stage)
    if stage == "draining":
        node.fake.want(desired(draining(replica, deadline_s=600), standby=2, version=3))
        await node.until_state(ReplicaState.DRAINING)
    node.named("")
    assert len(node.seen) > (0 if stage == "booting" else 2)

    if how is signal.SIGINT:
        os.killpg(node.process.pid, how)  # as Ctrl-C in its terminal
    else:
        node.process.send_signal(how)

    await node.until(lambda: node.process.poll() is not None, "the agent ends")
    await node.until_nothing_is_left()
    if how is not signal.SIGKILL:
        assert complaints(node.log()) == [], "an end in order is nothing to warn of"
    if how is not signal.SIGKILL and stage in {"ready", "weights", "draining"}:
        assert (await node.until_state(ReplicaState.STOPPED)).failure is None


async def test_a_tethered_agent_dies_with_its_control_plane(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The tether is to the process that starts it: here a shell between the test and the agent."""
    async with real_node(environment) as node:
        starter = (
            "import subprocess,sys,time; from infra.tether import tethered;"
            f"subprocess.Popen(tethered(*{SCRIPTED!r})); time.sleep(600)"
        )
        node.process.send_signal(signal.SIGTERM)
        await node.until(lambda: node.process.poll() is not None, "the first agent ends")
        registered = len(node.fake.registrations)
        node.start((sys.executable, "-c", starter), environment)
        await node.until(lambda: len(node.fake.registrations) > registered, "it registers")
        await ready(node, scripted(tmp_path), standby=1)
        await node.until_parked(1)
        assert len(node.named("fl-node") + node.named("fl-zygote") + node.named("fl-replica")) == 3

        node.process.kill()

        await node.until_nothing_is_left()


async def test_an_agent_that_is_not_tethered_keeps_its_replicas_and_dials_again(
    node: RealNode, tmp_path: Path
) -> None:
    port = await ready(node, scripted(tmp_path), standby=1)
    pid = await answer(port)

    await node.control_plane.stop()
    node.fake.forget_nodes()
    await asyncio.sleep(1)
    assert await answer(port) == pid
    registered = len(node.fake.registrations)
    await node.control_plane.start()

    await node.until(lambda: len(node.fake.registrations) > registered, "it registers again")
    (told,) = node.fake.registrations[-1].replicas
    assert (told.state, told.port) == (ReplicaState.READY, port)
    assert await answer(port) == pid


async def test_what_a_replica_prints_reaches_the_control_plane(
    node: RealNode, tmp_path: Path
) -> None:
    lines = ["first line", "ünïcödé", "x" * 20_000]
    await ready(node, scripted(tmp_path, print=lines), standby=1)

    def shipped() -> list[str]:
        return [line.text for sent in node.fake.reports for line in sent.logs]

    await node.until(lambda: len(shipped()) >= 5, "the lines")
    assert shipped()[:5] == [*lines[:2], "x" * 8192, "x" * 8192, "x" * (20_000 - 2 * 8192)]


async def test_two_replicas_at_once_with_one_parked_worker(node: RealNode, tmp_path: Path) -> None:
    node.fake.want(desired(standby=1, version=1))
    await node.until_parked(1)

    node.fake.want(
        desired(scripted(tmp_path, "r1"), scripted(tmp_path, "r2"), standby=1, version=2)
    )

    first = await node.until_state(ReplicaState.READY, "r1")
    second = await node.until_state(ReplicaState.READY, "r2")
    assert [first.stages[0].source, second.stages[0].source] == ["parked", "fork"]


async def test_a_standby_worker_reads_ahead_what_climbed_here_before(
    node: RealNode, tmp_path: Path
) -> None:
    await ready(node, scripted(tmp_path), standby=1)
    await node.until_parked(1)
    node.fake.want(desired(scripted(tmp_path), scripted(tmp_path, "r2"), standby=1, version=3))

    await node.until_state(ReplicaState.READY, "r2")

    assert (node.state_dir / "logs" / "r2.log").read_text().startswith("prepared\n")


async def test_a_replicas_log_file_is_its_own(node: RealNode, tmp_path: Path) -> None:
    await ready(node, scripted(tmp_path, print=["hello"]), standby=1)

    assert (node.state_dir / "logs" / "r1.log").read_text().startswith("hello\n")


async def test_an_agent_that_started_many_replicas_holds_no_more_files_than_before(
    node: RealNode, tmp_path: Path
) -> None:
    await ready(node, scripted(tmp_path), standby=1)
    await node.until_parked(1)
    (agent,) = node.named("fl-node")
    before = agent.num_fds()

    for number in range(12):
        name = f"again{number}"
        node.fake.want(desired(scripted(tmp_path, name), standby=1, version=10 + number))
        await node.until_state(ReplicaState.READY, name)
        if number % 2:
            kill(node.named("fl-replica"))
            await node.until_state(ReplicaState.LOST, name)
    node.fake.want(desired(scripted(tmp_path), standby=1, version=50))
    await node.until_parked(1)

    await node.until(lambda: agent.num_fds() <= before, "no file is left open")
    assert agent.children() and all(child.status() != "zombie" for child in agent.children())


async def test_a_source_of_thousands_of_files_fits_the_link(node: RealNode, tmp_path: Path) -> None:
    replica = scripted(tmp_path)
    files = tuple(
        SourceFile(
            path=f"model-{number:05d}-of-20000.safetensors", size=1, digest="sha256:" + "0" * 64
        )
        for number in range(20_000)
    )
    source = replica.source.model_copy(update={"files": files})

    await ready(node, replica.model_copy(update={"source": source}), standby=1)
