"""The launcher of containers, ended at every stage: what is told, and that nothing is left."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.contracts.image_pull import Pulled
from infra.contracts.node import ClockReading, ReplicaAssignment
from infra.contracts.revision import ModelFacts
from infra.contracts.stage import Came, Moved, Rung, Stage, StageTiming
from infra.contracts.worker_link import (
    Asleep,
    FromWorker,
    ImageRead,
    Progress,
    Ready,
    StageDone,
    Start,
)
from infra.errors import ImageUnavailable
from infra.sources.memory import MemorySource
from tests.node.makers import assignment
from tests.support.processes import require
from worker.boot.entrance import enter
from worker.node.clock import NodeClock
from worker.node.container.cdi import NO_EDITS
from worker.node.container.fake_containers import FakeContainers
from worker.node.container.furnishing import Furnishing, Furniture
from worker.node.container.image import Image, OnProgress
from worker.node.container.image_keeper import ImageKeepers
from worker.node.container.launcher import ContainerLauncher, Premises
from worker.node.container.spec import Program
from worker.node.launcher import Exit
from worker.node.plan import Origin, WorkerId

FACTS = ModelFacts(
    architecture="tiny", context_tokens=1, vocabulary=1, weight_bytes=0, longest_token_bytes=1
)
WEIGHTS_ARE_THERE = StageDone(
    timing=StageTiming(stage=Stage.WEIGHTS, started_at=0, seconds=1, bytes=5, source="mmap")
)
IMAGE = Image("registry/worker:1", "sha256:chain", Program(("python3",), {}))


@dataclass
class Registry:
    """Images and puller at once."""

    is_here: bool = True
    is_pulling: asyncio.Event = field(default_factory=asyncio.Event)
    may_fail: asyncio.Event = field(default_factory=asyncio.Event)

    def find(self, reference: str, index: str | None) -> Image | None:
        return IMAGE if self.is_here else None

    async def pull(
        self, reference: str, on_progress: OnProgress, *, index: str | None = None
    ) -> Pulled:
        self.is_pulling.set()
        await self.may_fail.wait()
        raise ImageUnavailable(f"{reference} is nowhere")


@dataclass
class Heard:
    """What the launcher's listener hears."""

    exits: "asyncio.Queue[tuple[WorkerId, Exit]]" = field(default_factory=asyncio.Queue)
    zygotes: "asyncio.Queue[Exit | None]" = field(default_factory=asyncio.Queue)
    said: "asyncio.Queue[FromWorker]" = field(default_factory=asyncio.Queue)

    def on_message(self, worker_id: WorkerId, message: FromWorker) -> None:
        if not isinstance(message, Progress):
            self.said.put_nowait(message)

    def on_exit(self, worker_id: WorkerId, end: Exit) -> None:
        self.exits.put_nowait((worker_id, end))

    def on_zygote_up(self) -> None:
        self.zygotes.put_nowait(None)

    def on_zygote_exit(self, end: Exit) -> None:
        self.zygotes.put_nowait(end)


class SharedFurnishing(Furnishing):
    """For workers that see this machine as it is."""

    def mount(self, assignment: ReplicaAssignment, furniture: Furniture, pid: int) -> None:
        """Everything is there."""


@dataclass
class World:
    launcher: ContainerLauncher
    containers: FakeContainers
    registry: Registry
    heard: Heard
    folder: Path

    async def enter(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Starts a worker, and is in the place of its process, which sleeps and says nothing."""
        require(os.geteuid() == 0, "root, which gives logs away,")
        self.launcher.spawn(1, Path("unused"), ranks=0)
        self.containers.may_start.set()
        while not self.containers.alive:  # noqa: ASYNC110 - a thread of the launcher starts it
            await asyncio.sleep(0.001)
        (name,) = self.containers.alive
        folder = os.open(self.folder / name / "inside", os.O_RDONLY)
        try:
            entrance = await asyncio.to_thread(enter, f"/proc/self/fd/{folder}/link.sock")
        finally:
            os.close(folder)
        os.close(entrance.listening)
        link = socket.socket(fileno=entrance.link)
        return await asyncio.open_connection(sock=link)

    async def until_starting(self) -> None:
        await asyncio.to_thread(self.containers.is_starting.wait)

    def has_nothing_left(self) -> bool:
        return not self.containers.alive and not any(self.folder.glob("*"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    containers, registry, heard, sources = FakeContainers(), Registry(), Heard(), MemorySource()
    sources.add("tiny", assignment().source, FACTS, tmp_path)
    folder = tmp_path / "containers"
    launcher = ContainerLauncher(
        containers,
        ImageKeepers(IMAGE.reference, registry, registry, NodeClock()),
        SharedFurnishing(sources, tmp_path, NodeClock()),
        Premises(folder, "/firstlight-tests", {}, NO_EDITS, open_files=100),
    )
    launcher.listen(heard)
    world = World(launcher, containers, registry, heard, folder)
    yield world
    containers.may_start.set()
    await launcher.close()
    assert world.has_nothing_left()


async def test_a_worker_killed_while_its_image_is_pulled_never_has_a_container(
    world: World,
) -> None:
    world.registry.is_here = False
    world.launcher.spawn(1, Path("unused"), ranks=0)
    await world.registry.is_pulling.wait()

    world.launcher.kill(1)

    assert await world.heard.exits.get() == (1, Exit(-9))
    assert world.containers.specs == {}


async def test_a_worker_killed_while_the_runtime_starts_it_is_removed_once_it_has(
    world: World,
) -> None:
    world.launcher.spawn(1, Path("unused"), ranks=0)
    await world.until_starting()

    world.launcher.kill(1)
    world.launcher.kill(1)
    world.containers.may_start.set()

    assert await world.heard.exits.get() == (1, Exit(-9))
    assert world.containers.removed == list(world.containers.specs)


async def test_a_running_worker_that_is_killed_says_by_what(world: World) -> None:
    world.containers.may_start.set()
    world.launcher.spawn(1, Path("unused"), ranks=0)
    await world.until_starting()
    while not world.containers.alive:  # noqa: ASYNC110 - a thread of the launcher starts it
        await asyncio.sleep(0.001)

    (process,) = world.containers.alive.values()
    process.kill()

    worker_id, end = await world.heard.exits.get()
    assert (worker_id, str(end)) == (1, "killed by SIGKILL")


async def test_a_runtime_that_refuses_is_the_end_of_the_worker(world: World) -> None:
    world.containers.refuses = "runc: no such file"
    world.containers.may_start.set()

    world.launcher.fork(1, ranks=0)

    _, end = await world.heard.exits.get()
    assert end.why == "its container did not start: runc: no such file"


async def test_an_image_that_cannot_be_had_ends_who_waits_for_it_by_its_name(
    world: World,
) -> None:
    world.registry.is_here = False
    world.registry.may_fail.set()

    world.launcher.start_zygote()
    world.launcher.spawn(1, Path("unused"), ranks=0)

    told = Exit(why="registry/worker:1 is nowhere", code="image-unavailable")
    assert await world.heard.zygotes.get() == told
    assert await world.heard.exits.get() == (1, told)


async def test_the_image_is_to_containers_what_a_fork_server_is_to_processes(
    world: World,
) -> None:
    assert world.launcher.climbs_from(Origin.FORK) == (Rung.NODE, "container")

    world.launcher.start_zygote()

    assert await world.heard.zygotes.get() is None
    assert world.launcher.climbs_from(Origin.FORK) == (Rung.IMAGE, "container")


async def test_what_earlier_agents_left_is_removed_before_anything_is_started(
    world: World,
) -> None:
    world.containers.left = ["fl-of-before-1", "fl-of-before-2"]
    (world.folder / "fl-of-before-1" / "inside").mkdir(parents=True)
    world.containers.may_start.set()

    world.launcher.start_zygote()

    assert await world.heard.zygotes.get() is None
    assert world.containers.removed == ["fl-of-before-1", "fl-of-before-2"]
    assert world.has_nothing_left()


async def test_workers_are_started_by_a_socket_that_only_their_container_sees(
    world: World,
) -> None:
    world.containers.may_start.set()
    world.launcher.spawn(1, Path("unused"), ranks=2)
    await world.until_starting()
    while not world.containers.specs:  # noqa: ASYNC110 - a thread of the launcher starts it
        await asyncio.sleep(0.001)

    ((name, spec),) = world.containers.specs.items()

    assert spec["process"]["args"] == [
        *("python3", "replica", "--socket", "/run/firstlight/link.sock"),
        *("--cache", "/models/kept", "--ranks", "2"),
    ]
    inside = Path(next(it for it in spec["mounts"] if it["type"] == "bind")["source"])
    assert inside == world.folder / name / "inside"
    assert names_in(inside) == ["link.sock"]
    assert spec["linux"]["cgroupsPath"] == f"/firstlight-tests/{name}"


async def test_the_runtime_hears_once_that_what_it_runs_has_started(
    world: World, tmp_path: Path
) -> None:
    hears, says = await world.enter()
    moved = Moved(came=(Came(source="origin", bytes=7),), seconds=0.5)
    world.containers.moved = moved
    world.launcher.send(1, start(tmp_path))
    await hears.readline()

    say(says, WEIGHTS_ARE_THERE)
    assert [await world.heard.said.get() for _ in range(2)] == [
        WEIGHTS_ARE_THERE,
        ImageRead(read=moved),
    ]
    assert world.containers.ready == []
    for message in (Ready(host="", port=0), Asleep(memory_bytes=1), Ready(host="", port=0)):
        say(says, message)

    said = [await world.heard.said.get() for _ in range(4)]
    assert said.count(ImageRead(read=moved)) == 1
    assert [type(message) for message in said if not isinstance(message, ImageRead)] == [
        *(Ready, Asleep, Ready)
    ]
    assert world.containers.ready == list(world.containers.alive)
    says.close()


async def test_a_runtime_that_is_away_is_no_reason_for_a_start_to_fail(
    world: World, tmp_path: Path
) -> None:
    hears, says = await world.enter()
    world.containers.refuses = "containerd is away"
    world.launcher.send(1, start(tmp_path))
    await hears.readline()

    for message in (WEIGHTS_ARE_THERE, Ready(host="", port=0), Asleep(memory_bytes=1)):
        say(says, message)

    said = [type(await world.heard.said.get()) for _ in range(3)]
    assert said == [StageDone, Ready, Asleep]
    assert world.containers.alive
    says.close()


def start(folder: Path) -> Start:
    return Start(
        assignment=assignment(),
        clock=ClockReading(wall=0, monotonic=0, boot_id="boot"),
        host="127.0.0.1",
        log_path=str(folder / "r1.log"),
    )


def say(says: asyncio.StreamWriter, message: FromWorker) -> None:
    says.write(message.model_dump_json().encode() + b"\n")


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]
