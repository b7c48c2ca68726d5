import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.image import ImagePin, ImagePool
from infra.contracts.node import Failure, ReplicaAssignment, ReplicaReport
from infra.contracts.revision import ReplicaState, ResolvedSource
from infra.contracts.stage import Rung, Stage, StageProgress, StageTiming
from infra.contracts.worker_link import (
    Asleep,
    Drain,
    Failed,
    Prepare,
    Progress,
    Ready,
    StageDone,
    Start,
)
from infra.virtual_time import run_virtual
from tests.node.makers import assignment, desired, may_sleep
from worker.node.agent import Agent
from worker.node.clock import NodeClock
from worker.node.fake_control_plane import FakeControlPlane
from worker.node.fake_gpus import a_gpu
from worker.node.fake_launcher import FakeLauncher
from worker.node.launcher import Exit
from worker.node.logs import ReplicaLogs
from worker.node.plan import Origin, WorkerId
from worker.node.reading_ahead import worth_preparing
from worker.node.session import NodeFacts, Session

R1, R2 = ReplicaId("r1"), ReplicaId("r2")


@dataclass
class Node:
    """An agent with its session, between a fake control plane and a fake launcher."""

    control_plane: FakeControlPlane
    launcher: FakeLauncher
    agent: Agent
    clock: NodeClock
    logs: ReplicaLogs

    def report(self, replica_id: ReplicaId = R1) -> ReplicaReport:
        return self.control_plane.replicas[replica_id]

    def started(self, replica_id: ReplicaId = R1) -> WorkerId:
        """The worker that was told to become this replica, last."""
        return [
            worker_id
            for worker_id, message in self.launcher.sent
            if isinstance(message, Start) and message.assignment.replica_id == replica_id
        ][-1]

    def climb(self, replica_id: ReplicaId = R1) -> None:
        """The replica's worker passes all its stages at once."""
        worker_id = self.started(replica_id)
        for stage in (Stage.RUNTIME, Stage.WEIGHTS, Stage.ENGINE):
            timing = StageTiming(stage=stage, started_at=self.clock.now(), seconds=0)
            self.launcher.say(worker_id, StageDone(timing=timing))
        self.launcher.say(worker_id, Ready(host="127.0.0.1", port=4711))


@asynccontextmanager
async def node(folder: Path, control_plane: FakeControlPlane) -> AsyncIterator[Node]:
    clock = NodeClock()
    launcher = FakeLauncher()
    logs = ReplicaLogs(folder, clock)
    agent = Agent(launcher, logs, clock)
    facts = NodeFacts(NodeId("n1"), cpus=2, memory_bytes=1 << 30, began_s=0.0)
    session = asyncio.create_task(Session(control_plane, agent, logs, clock, facts).run())
    try:
        yield Node(control_plane, launcher, agent, clock, logs)
    finally:
        session.cancel()
        await asyncio.wait({session})


@pytest.fixture
def simulate(tmp_path: Path) -> Callable[[Callable[[Node], Awaitable[None]]], None]:
    def run(story: Callable[[Node], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(3600), node(tmp_path, FakeControlPlane()) as it:
                await story(it)

        run_virtual(main())

    return run


def test_a_claim_of_a_parked_worker(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(standby=1, version=1))
        await asyncio.sleep(5)
        assert node.control_plane.reports[-1].standby_ready == 1

        node.control_plane.want(desired(assignment(), standby=1, version=2))
        await asyncio.sleep(0.001)
        assert node.started() == 1

        node.climb()
        await asyncio.sleep(0.001)
        report = node.report()
        assert (report.state, report.from_rung) == (ReplicaState.READY, Rung.RUNTIME)
        assert (report.host, report.port) == ("127.0.0.1", 4711)
        assert [timing.stage for timing in report.stages] == [
            Stage.RUNTIME,
            Stage.WEIGHTS,
            Stage.ENGINE,
        ]
        assert report.stages[0].source == "parked"

    simulate(story)


def test_the_runtime_stage_runs_from_receipt_to_where_the_worker_says_it_ended(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(2)  # spawned
        received_at = node.agent.reports()[0].stages
        ended_at = node.clock.now() + 1
        timing = StageTiming(stage=Stage.RUNTIME, started_at=ended_at, seconds=0)

        node.launcher.say(node.started(), StageDone(timing=timing))

        assert received_at == ()
        (runtime,) = node.agent.reports()[0].stages
        assert runtime.source == "spawn"
        assert runtime.ended_at == pytest.approx(ended_at, abs=1e-6)
        assert 1 <= runtime.seconds < 2  # in real time, which the fakes do not slow down

    simulate(story)


def test_the_pool_refills_after_the_climb_and_not_beside_it(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(standby=1, version=1))
        await asyncio.sleep(5)
        node.control_plane.want(desired(assignment(), standby=1, version=2))
        await asyncio.sleep(2)
        assert list(node.launcher.alive) == [1]

        node.climb()
        await asyncio.sleep(0.2)
        assert list(node.launcher.alive) == [1]
        await asyncio.sleep(0.2)
        assert list(node.launcher.alive) == [1, 2]
        assert node.control_plane.reports[-1].standby_ready == 1

    simulate(story)


def test_a_long_climb_does_not_keep_the_pool_empty_for_ever(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(standby=1, version=1))
        await asyncio.sleep(5)
        node.control_plane.want(desired(assignment(), standby=1, version=2))
        await asyncio.sleep(6)

        assert list(node.launcher.alive) == [1, 2]

    simulate(story)


def test_without_standby_a_replica_is_spawned_and_says_so(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(1)
        assert node.launcher.alive == {1: Origin.SPAWN}
        assert node.report().state is ReplicaState.STARTING
        assert node.report().progress == StageProgress(stage=Stage.RUNTIME, fraction=0)

        await asyncio.sleep(1)
        node.climb()
        await asyncio.sleep(0.1)
        assert (node.report().from_rung, node.report().stages[0].source) == (Rung.NODE, "spawn")
        assert node.launcher.zygotes == 0

    simulate(story)


def test_progress_is_reported_while_it_climbs(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(2)
        progress = StageProgress(stage=Stage.WEIGHTS, fraction=0.4)

        node.launcher.say(node.started(), Progress(progress=progress))
        await asyncio.sleep(0.01)

        assert node.report().progress == progress

    simulate(story)


@pytest.mark.parametrize(
    ("is_ready", "state", "code"),
    [
        (False, ReplicaState.FAILED, "replica-failed"),
        (True, ReplicaState.LOST, "replica-lost"),
    ],
)
def test_a_killed_replica_is_reported_with_its_signal_and_last_log_line(
    simulate, is_ready: bool, state: ReplicaState, code: str
) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(2)
        if is_ready:
            node.climb()
        node.logs.path(R1).write_text("loading\nout of luck\n")

        node.launcher.lose(node.started(), Exit(-9))
        await asyncio.sleep(0.001)

        assert node.report().state is state
        assert node.report().failure == Failure(
            code=code,
            detail="killed by SIGKILL; last log line: out of luck",
            is_permanent=False,
        )
        await asyncio.sleep(30)
        assert node.launcher.alive == {}  # starting again is the control plane's decision
        node.control_plane.want(desired(version=2))
        await asyncio.sleep(1)
        assert node.agent.reports() == ()

    simulate(story)


def test_a_failure_of_the_climb_is_reported_as_the_worker_says_it(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(2)
        failure = Failure(code="unsupported-model", detail="no such layer", is_permanent=True)

        node.launcher.say(node.started(), Failed(failure=failure))
        node.launcher.lose(node.started(), Exit(1))
        await asyncio.sleep(0.1)

        assert (node.report().state, node.report().failure) == (ReplicaState.FAILED, failure)

    simulate(story)


def test_draining_ends_in_stopped(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment(), version=1))
        await asyncio.sleep(2)
        node.climb()
        node.control_plane.want(desired(assignment(desired="drain"), version=2))
        await asyncio.sleep(0.1)
        assert node.report().state is ReplicaState.DRAINING
        assert node.launcher.sent[-1] == (1, Drain(deadline_s=5))

        node.launcher.lose(1, Exit(0))
        await asyncio.sleep(0.1)
        assert (node.report().state, node.report().failure) == (ReplicaState.STOPPED, None)

    simulate(story)


def test_a_worker_that_does_not_drain_in_time_is_killed(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment(), version=1))
        await asyncio.sleep(2)
        node.climb()
        node.control_plane.want(desired(assignment(desired="drain"), version=2))
        await asyncio.sleep(6.9)
        assert node.launcher.killed == []
        await asyncio.sleep(0.2)

        assert node.launcher.killed == [1]
        assert node.report().state is ReplicaState.STOPPED

    simulate(story)


def test_a_killed_process_may_outlive_its_replica_and_the_drain(simulate) -> None:
    """A driver may hold it up; by then the control plane has forgotten the replica."""

    async def story(node: Node) -> None:
        wrong: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: wrong.append(what))
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(5)
        node.climb()
        node.control_plane.want(desired(assignment(desired="drain"), version=2))
        await asyncio.sleep(0.1)
        failure = Failure(code="replica-lost", detail="the engine died", is_permanent=False)
        node.launcher.say(node.started(), Failed(failure=failure))
        node.launcher.alive.clear()  # nothing is heard of its end

        node.control_plane.want(desired(version=3))
        await asyncio.sleep(60)

        assert node.launcher.killed == [node.started()]
        assert node.agent.reports() == ()
        assert wrong == []

    simulate(story)


def test_a_replica_that_crashes_while_it_drains_is_lost(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment(), version=1))
        await asyncio.sleep(2)
        node.climb()
        node.control_plane.want(desired(assignment(desired="drain"), version=2))
        await asyncio.sleep(0.1)

        node.launcher.lose(1, Exit(-11))
        await asyncio.sleep(0.1)

        failure = node.report().failure
        assert node.report().state is ReplicaState.LOST
        assert failure is not None
        assert failure.detail == "killed by SIGSEGV"

    simulate(story)


async def put_to_sleep(node: Node, sleep_s: float = 60, standby: int = 0) -> WorkerId:
    """A replica has climbed and drained, and its worker sleeps; the control plane forgot it."""
    run, drain = (assignment(desired=it, sleep_s=sleep_s) for it in ("run", "drain"))
    node.control_plane.want(may_sleep(desired(run, standby=standby, version=1)))
    await asyncio.sleep(6)
    node.climb()
    node.control_plane.want(may_sleep(desired(drain, standby=standby, version=2)))
    await asyncio.sleep(0.1)
    worker_id = node.started()
    assert node.launcher.sent[-1] == (worker_id, Drain(deadline_s=5, may_sleep=True))
    node.launcher.say(worker_id, Asleep(memory_bytes=1000))
    await asyncio.sleep(0.1)
    assert node.report().state is ReplicaState.STOPPED
    node.control_plane.want(may_sleep(desired(standby=standby, version=3)))
    await asyncio.sleep(0.1)
    assert node.agent.reports() == ()
    return worker_id


def test_a_worker_that_sleeps_wakes_as_another_replica_from_the_weights_rung(simulate) -> None:
    async def story(node: Node) -> None:
        worker_id = await put_to_sleep(node, standby=1)
        (sleeper,) = node.control_plane.reports[-1].sleepers
        assert (sleeper.revision, sleeper.memory_bytes) == ("tiny@1", 1000)
        assert sleeper.until - sleeper.since == 60
        assert node.control_plane.reports[-1].standby_ready == 1

        again = assignment("r2", sleep_s=60)
        node.control_plane.want(may_sleep(desired(again, standby=1, version=4)))
        await asyncio.sleep(0.01)
        assert node.started(R2) == worker_id
        node.climb(R2)
        await asyncio.sleep(0.01)

        report = node.report(R2)
        assert (report.state, report.from_rung) == (ReplicaState.READY, Rung.WEIGHTS)
        assert [timing.stage for timing in report.stages] == [
            Stage.RUNTIME,
            Stage.WEIGHTS,
            Stage.ENGINE,
        ]
        assert report.stages[0].source == "asleep"
        assert node.control_plane.reports[-1].sleepers == ()
        assert node.control_plane.reports[-1].standby_ready == 1
        await asyncio.sleep(600)  # past its drain's deadline and its sleep's end, as r1 had them
        assert node.report(R2).state is ReplicaState.READY
        assert node.launcher.killed == []

    simulate(story)


def test_a_sleeper_is_ended_when_its_time_is_over_and_the_control_plane_hears_of_it(
    simulate,
) -> None:
    async def story(node: Node) -> None:
        worker_id = await put_to_sleep(node, sleep_s=60)
        await asyncio.sleep(59)
        assert node.launcher.killed == []
        await asyncio.sleep(1)

        assert node.launcher.killed == [worker_id]
        assert node.control_plane.reports[-1].sleepers == ()

    simulate(story)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: may_sleep(state, "tiny@2"), "another revision is served"),
        (lambda state: may_sleep(state, memory_bytes=999), "others need the memory"),
        (lambda state: state, "nothing may sleep"),
    ],
)
def test_a_sleeper_gives_way_at_once(simulate, change, why: str) -> None:
    async def story(node: Node) -> None:
        worker_id = await put_to_sleep(node)

        node.control_plane.want(change(desired(version=9)))
        await asyncio.sleep(0.01)

        assert node.launcher.killed == [worker_id], why

    simulate(story)


def test_a_sleeper_that_dies_is_no_failure_of_the_standby(simulate) -> None:
    async def story(node: Node) -> None:
        worker_id = await put_to_sleep(node, standby=1)

        node.launcher.lose(worker_id, Exit(-9))
        await asyncio.sleep(0.1)

        assert node.control_plane.reports[-1].sleepers == ()
        assert node.control_plane.reports[-1].standby_ready == 1
        node.control_plane.want(may_sleep(desired(assignment("r2"), standby=1, version=4)))
        await asyncio.sleep(0.1)
        assert node.started(R2) in node.launcher.parked

    simulate(story)


def test_a_sleeper_that_dies_while_it_wakes_has_failed_and_does_not_sleep(simulate) -> None:
    async def story(node: Node) -> None:
        worker_id = await put_to_sleep(node)
        node.control_plane.want(may_sleep(desired(assignment("r2", sleep_s=60), version=4)))
        await asyncio.sleep(0.01)

        node.launcher.lose(worker_id, Exit(-9))
        await asyncio.sleep(0.01)

        failure = node.report(R2).failure
        assert node.report(R2).state is ReplicaState.FAILED
        assert failure is not None and not failure.is_permanent
        assert node.agent.sleepers() == ()

    simulate(story)


def test_a_sleeper_lives_through_a_restart_of_the_control_plane(simulate) -> None:
    async def story(node: Node) -> None:
        await put_to_sleep(node)
        node.control_plane.is_down = True
        node.control_plane.forget_nodes()
        await asyncio.sleep(10)

        node.control_plane.is_down = False
        await asyncio.sleep(3)

        assert [it.revision for it in node.control_plane.reports[-1].sleepers] == ["tiny@1"]

    simulate(story)


def test_a_replica_that_is_no_longer_listed_is_killed_at_once(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment(), version=1))
        await asyncio.sleep(2)
        node.climb()
        node.control_plane.want(desired(version=2))
        await asyncio.sleep(0.01)

        assert node.launcher.killed == [1]
        assert node.report().state is ReplicaState.STOPPED
        assert node.agent.reports() == ()

    simulate(story)


def test_a_lost_zygote_is_replaced_and_replicas_and_parked_workers_live_on(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(standby=1, version=1))
        await asyncio.sleep(5)
        node.control_plane.want(desired(assignment(), standby=1, version=2))
        await asyncio.sleep(0.01)
        node.climb()
        await asyncio.sleep(1)
        assert len(node.launcher.alive) == 2

        node.launcher.lose_zygote(Exit(-9))
        await asyncio.sleep(5)

        assert node.launcher.zygotes == 2
        assert node.launcher.is_up
        assert list(node.launcher.alive) == [1, 2]
        assert node.report().state is ReplicaState.READY

    simulate(story)


def test_a_replica_that_was_to_be_forked_by_a_lost_zygote_gets_another_process(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment(), standby=1, version=1))
        await asyncio.sleep(0.5)
        assert node.launcher.alive[1] is Origin.FORK

        node.launcher.lose_zygote(Exit(-9))
        await asyncio.sleep(3)
        node.climb()
        await asyncio.sleep(0.1)

        assert node.report().state is ReplicaState.READY
        assert node.report().failure is None

    simulate(story)


def test_a_zygote_that_keeps_dying_is_started_ever_less_often(simulate) -> None:
    async def story(node: Node) -> None:
        node.launcher.zygote_s = 1e9
        node.control_plane.want(desired(standby=1))
        for _ in range(1000):
            await asyncio.sleep(0.1)
            if node.launcher.has_zygote:
                node.launcher.lose_zygote(Exit(1))

        assert node.launcher.zygotes <= 12

    simulate(story)


def test_a_standby_worker_that_keeps_dying_is_replaced_ever_less_often(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(standby=1))
        lost: set[WorkerId] = set()
        for _ in range(1000):
            await asyncio.sleep(0.1)
            for worker_id in list(node.launcher.parked):
                lost.add(worker_id)
                node.launcher.lose(worker_id, Exit(1))

        assert 1 < len(lost) <= 12

    simulate(story)


def test_a_killed_standby_worker_is_replaced_soon(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(standby=1))
        await asyncio.sleep(60)
        node.launcher.lose(1, Exit(-9))
        await asyncio.sleep(0.3)

        assert node.launcher.parked == {2}

    simulate(story)


def test_the_lease_is_renewed_while_nothing_happens(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(standby=1))
        await asyncio.sleep(10)
        before = len(node.control_plane.reports)
        await asyncio.sleep(90)

        assert 29 <= len(node.control_plane.reports) - before <= 31

    simulate(story)


def test_a_restarted_control_plane_is_told_of_the_replicas_that_run(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(2)
        node.climb()
        node.control_plane.is_down = True
        node.control_plane.forget_nodes()
        await asyncio.sleep(60)
        assert node.launcher.alive == {1: Origin.SPAWN}

        node.control_plane.is_down = False
        await asyncio.sleep(3)

        assert [r.state for r in node.control_plane.registrations[-1].replicas] == [
            ReplicaState.READY
        ]
        assert node.launcher.alive == {1: Origin.SPAWN}

    simulate(story)


def test_log_lines_are_shipped_and_survive_an_outage(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(2)
        with node.logs.path(R1).open("a") as file:
            file.write("one\n")
        await asyncio.sleep(1)
        node.control_plane.is_down = True
        node.control_plane.forget_nodes()
        with node.logs.path(R1).open("a") as file:
            file.write("two\n")
        await asyncio.sleep(10)
        node.control_plane.is_down = False
        await asyncio.sleep(5)

        shipped = [line for report in node.control_plane.reports for line in report.logs]
        assert [(line.replica_id, line.text) for line in shipped] == [(R1, "one"), (R1, "two")]

    simulate(story)


def test_closing_ends_every_process_and_is_no_failure_of_any(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment(), standby=2))
        await asyncio.sleep(5)
        node.climb()
        await asyncio.sleep(5)
        assert node.agent.standby_ready() == 2

        with capture_logs() as logs:
            await node.agent.close()

        assert node.launcher.is_closed and not node.launcher.alive
        assert [it.state for it in node.agent.take_changes()] == [ReplicaState.STOPPED]
        assert {entry["log_level"] for entry in logs} <= {"debug", "info"}, logs

    simulate(story)


def source(name: str, scheme: str = "file") -> ResolvedSource:
    return ResolvedSource(uri=f"{scheme}://{name}", digest=f"sha256:{name}", files=())


def test_what_standby_workers_may_read_ahead() -> None:
    a, b, hub, seen_hub = source("a"), source("b"), source("h", "hf"), source("s", "hf")

    assert worth_preparing((a, hub, seen_hub), (b, seen_hub)) == (a, seen_hub, b)
    assert len(worth_preparing(tuple(source(str(n)) for n in range(50)), ())) == 8


def test_parked_workers_hear_of_likely_sources_and_later_ones_too(simulate) -> None:
    async def story(node: Node) -> None:
        likely = desired(standby=2).model_copy(update={"prepare": (source("a"),)})
        node.control_plane.want(likely)
        await asyncio.sleep(5)
        assert node.launcher.sent == [
            (1, Prepare(sources=(source("a"),))),
            (2, Prepare(sources=(source("a"),))),
        ]

        node.control_plane.want(desired(assignment(), standby=2, version=2))
        await asyncio.sleep(0.1)
        node.climb()

        assert node.launcher.sent[-1] == (2, Prepare(sources=(assignment().source,)))

    simulate(story)


def test_a_replica_may_be_forgotten_before_its_process_is_gone(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment()))
        await asyncio.sleep(5)
        failure = Failure(code="replica-failed", detail="no", is_permanent=False)
        node.launcher.say(node.started(), Failed(failure=failure))
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: errors.append(what))

        node.agent.apply(desired(version=2))  # kills it
        node.agent.apply(desired(version=3))  # and forgets it, before it has ended
        await asyncio.sleep(1)

        assert (errors, node.launcher.alive, node.agent.reports()) == ([], {}, ())

    simulate(story)


@pytest.mark.parametrize("seed", range(10))
def test_gpus_have_one_owner_whatever_starts_and_dies_and_none_is_lost(simulate, seed: int) -> None:
    async def story(node: Node) -> None:
        dice, agent = random.Random(seed), node.agent
        gpus = tuple(a_gpu(number) for number in range(4))
        table, loop = agent.gpu_table, asyncio.get_running_loop()

        def read() -> None:
            agent.on_gpus(gpus, after=table.num_given_back)

        table.on_given_back = lambda: loop.call_later(dice.choice([0, 0.01, 0.3]), read) and None
        read()
        wanted: dict[str, ReplicaAssignment] = {}
        for turn in range(60):
            name = f"r{turn}"
            kinds = {"sleep_s": dice.choice([0, 60]), "gpus": dice.choice([0, 1, 2])}
            wanted[name] = assignment(name, **kinds)
            for gone in [it for it in wanted if dice.random() < 0.3]:
                del wanted[gone]
            node.control_plane.want(
                may_sleep(desired(*wanted.values(), standby=1, version=turn + 1))
            )
            await asyncio.sleep(dice.choice([0.01, 0.5, 3]))
            if dice.random() < 0.3 and node.launcher.alive:
                node.launcher.lose(dice.choice(list(node.launcher.alive)), Exit(-9))
            for worker_id in list(node.launcher.parked):
                if dice.random() < 0.3:
                    node.launcher.say(worker_id, Asleep(memory_bytes=1))
            table.check_integrity()
            _check_starts(node)

        node.control_plane.want(desired(assignment("last", gpus=4), version=100))
        await asyncio.sleep(5)
        assert {gpu.replica_id for gpu in agent.gpus()} == {"last"}
        assert node.launcher.ranks[node.started(ReplicaId("last"))] == 3
        given = [it for _, it in node.launcher.sent if isinstance(it, Start) and it.gpus]
        assert len(given) > 10

    simulate(story)


def _check_starts(node: Node) -> None:
    """What living workers were told to see last is theirs alone."""
    seen = {
        worker_id: message.gpus
        for worker_id, message in node.launcher.sent
        if isinstance(message, Start) and worker_id in node.launcher.alive
    }
    together = [gpu for gpus in seen.values() for gpu in gpus]
    assert len(together) == len(set(together)), seen
    for worker_id, gpus in seen.items():
        assert node.agent.gpu_table.owned_by(worker_id) == gpus


INDEX = f"sha256:{'1' * 64}"
IMAGE, BROKEN = "r.io/own@sha256:1", "r.io/broken@sha256:2"


def test_an_image_whose_workers_die_rests_alone_and_others_are_parked_and_told_of(simulate) -> None:
    async def story(node: Node) -> None:
        node.launcher.runs_images = True
        pools = tuple(ImagePool(image=image, workers=1) for image in (IMAGE, BROKEN))
        pins = (ImagePin(image=IMAGE, index=INDEX),)
        node.control_plane.want(desired().model_copy(update={"pools": pools, "pins": pins}))
        began_at = asyncio.get_running_loop().time()
        deaths = 0
        while asyncio.get_running_loop().time() < began_at + 60:
            await asyncio.sleep(0.01)
            for worker_id in tuple(node.launcher.alive):
                if node.launcher.images[worker_id] == BROKEN:
                    deaths += 1
                    node.launcher.lose(worker_id, Exit(1))

        assert 2 < deaths < 30
        assert node.launcher.pins == {IMAGE: INDEX}
        assert node.agent.pools_ready() == (ImagePool(image=IMAGE, workers=1),)
        assert node.agent.standby_ready() == 0
        assert node.control_plane.reports[-1].pools_ready == node.agent.pools_ready()
        node.control_plane.want(desired(assignment(image=IMAGE), version=2))
        await asyncio.sleep(1)
        node.climb()
        await asyncio.sleep(1)
        assert node.report().from_rung is Rung.RUNTIME

    simulate(story)


def test_a_node_of_processes_says_that_it_cannot_run_an_image(simulate) -> None:
    async def story(node: Node) -> None:
        node.control_plane.want(desired(assignment(image=IMAGE)))
        await asyncio.sleep(1)

        report = node.report()
        assert report.state is ReplicaState.FAILED
        assert report.failure is not None and report.failure.code == "no-capacity"
        assert IMAGE in report.failure.detail and report.failure.hint is not None

    simulate(story)
