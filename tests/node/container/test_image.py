"""One pull for all who wait, told as the stage `image`; what manifests and pulling programs say."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from infra.contracts.image_pull import Pulled, PullFailed, PullOrder, PullProgress
from infra.contracts.stage import Stage
from infra.contracts.worker_link import FromWorker, Progress, StageDone
from infra.errors import ImageUnavailable
from worker.node.container.image import Image, OnProgress
from worker.node.container.image_keeper import MOST_KEEPERS, ImageKeeper, ImageKeepers
from worker.node.container.manifest import chain_id, choose_platform, program_of
from worker.node.container.pull_program import PullProgram
from worker.node.container.pull_service import PullService
from worker.node.container.spec import Program

INDEX = f"sha256:{'1' * 64}"
IMAGE = Image("registry/worker:1", "sha256:chain", Program(("worker",), {}))
PULLED = Pulled(digest="sha256:manifest", bytes=1000, source="origin")


@dataclass
class Registry:
    """Images and puller at once: what is pulled is found from then on."""

    is_here: bool = False
    fails: bool = False
    pulls: int = 0
    pulled_by: str | None = None  # index
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    def find(self, reference: str, index: str | None) -> Image | None:
        return IMAGE if self.is_here and index == self.pulled_by else None

    async def pull(
        self, reference: str, on_progress: OnProgress, *, index: str | None = None
    ) -> Pulled:
        self.pulls += 1
        self.pulled_by = index
        on_progress(0.5)
        self.has_begun.set()
        await self.may_end.wait()
        if self.fails:
            raise ImageUnavailable(f"{reference} is nowhere")
        self.is_here = True
        return PULLED


def keeper(registry: Registry) -> ImageKeeper:
    return ImageKeeper(IMAGE.reference, registry, registry, Clock())


class Clock:
    def now(self) -> float:
        return 100.0


async def test_an_image_that_is_here_is_no_stage() -> None:
    told: list[FromWorker] = []

    image = await keeper(Registry(is_here=True)).ensure(told.append)

    assert (image, told) == (IMAGE, [])


async def test_all_who_wait_share_a_pull_and_hear_of_it() -> None:
    registry = Registry()
    kept = keeper(registry)
    first: list[FromWorker] = []
    second: list[FromWorker] = []
    both = [asyncio.ensure_future(kept.ensure(told.append)) for told in (first, second)]
    await registry.has_begun.wait()
    assert not kept.is_here

    registry.may_end.set()

    assert await asyncio.gather(*both) == [IMAGE, IMAGE]
    assert registry.pulls == 1
    assert kept.is_here
    for told in (first, second):
        progress, done = told
        assert isinstance(progress, Progress)
        assert (progress.progress.stage, progress.progress.fraction) == (Stage.IMAGE, 0.5)
        assert isinstance(done, StageDone)
        timing = done.timing
        assert (timing.stage, timing.bytes, timing.source) == (Stage.IMAGE, 1000, "origin")


async def test_a_pull_that_failed_is_tried_again_by_the_next_who_asks() -> None:
    registry = Registry(fails=True)
    registry.may_end.set()
    kept = keeper(registry)
    with pytest.raises(ImageUnavailable, match="nowhere"):
        await kept.ensure(lambda message: None)

    registry.fails = False

    assert await kept.ensure(lambda message: None) == IMAGE
    assert registry.pulls == 2


async def test_a_pull_goes_on_when_who_waited_has_left() -> None:
    registry = Registry()
    kept = keeper(registry)
    waiting = asyncio.ensure_future(kept.ensure(lambda message: None))
    await registry.has_begun.wait()
    waiting.cancel()
    await asyncio.wait({waiting})

    registry.may_end.set()

    assert await kept.ensure(lambda message: None) == IMAGE
    assert registry.pulls == 1


async def test_the_end_of_the_agent_ends_a_pull() -> None:
    registry = Registry()
    kept = keeper(registry)
    waiting = asyncio.ensure_future(kept.ensure(lambda message: None))
    await registry.has_begun.wait()

    await kept.close()

    with pytest.raises(asyncio.CancelledError):
        await waiting


# What the program that pulls says ------------------------------------------------------------


def says(*lines: Any, complains: str = "", exits: int = 0) -> PullProgram:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    script = "import sys; sys.stdout.write(sys.argv[1]); sys.stderr.write(sys.argv[2]); "
    command = (sys.executable, "-I", "-S", "-c", f"{script}sys.exit({exits})", text, complains)
    return PullProgram(command, {})


async def test_a_program_that_pulls_says_how_far_it_is_and_what_it_brought() -> None:
    heard: list[float] = []
    program = says(
        {"kind": "progress", "fraction": 0.25},
        {"kind": "progress", "fraction": 1},
        {"kind": "pulled", **PULLED.model_dump(exclude={"kind"})},
    )

    assert await program.pull("registry/worker:1", heard.append) == PULLED
    assert heard == [0.25, 1]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (says(complains="error: no such tag\nhint: push it\n", exits=1), "no such tag"),
        (says(complains="Traceback\nKeyError: 'x'\n", exits=1), "KeyError"),
        (says(exits=3), "status 3"),
        (says(exits=0), "status 0"),
        (says("nonsense\n"), "JSON"),
        (says({"kind": "pulled", **PULLED.model_dump(exclude={"kind"})}, exits=1), "status 1"),
        (PullProgram(("/no/such/program",), {}), "No such file"),
    ],
)
async def test_a_program_that_fails_says_why(program: PullProgram, why: str) -> None:
    with pytest.raises(ImageUnavailable, match=why) as failed:
        await program.pull("registry/worker:1", lambda fraction: None)
    assert "registry/worker:1" in failed.value.detail


# What the snapshotter's service says ---------------------------------------------------------


@asynccontextmanager
async def answering(path: Path, *lines: str) -> AsyncIterator[list[str]]:
    """A service that answers every order so; the orders."""
    orders: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        orders.append((await reader.readline()).decode())
        writer.write("".join(f"{line}\n" for line in lines).encode())
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_unix_server(answer, path):
        yield orders


def service(path: Path) -> PullService:
    return PullService(path, containerd=Path("/c.sock"), namespace="ours", snapshotter="lazy")


async def test_a_service_is_told_where_to_pull_and_says_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    heard: list[float] = []
    progress = PullProgress(fraction=0.5).model_dump_json()
    async with answering(path, progress, PULLED.model_dump_json()) as orders:
        assert await service(path).pull("registry/worker:1", heard.append) == PULLED

    assert heard == [0.5]
    assert [PullOrder.model_validate_json(order) for order in orders] == [
        PullOrder(
            reference="registry/worker:1",
            containerd=Path("/c.sock"),
            namespace="ours",
            snapshotter="lazy",
        )
    ]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([PullFailed(detail="no such tag").model_dump_json()], "no such tag"),
        (["nonsense"], "JSON"),
        ([], "ended while it pulled"),
    ],
)
async def test_a_service_that_fails_says_why(tmp_path: Path, lines: list[str], why: str) -> None:
    path = tmp_path / "s"
    async with answering(path, *lines):
        with pytest.raises(ImageUnavailable, match=why) as failed:
            await service(path).pull("registry/worker:1", lambda fraction: None)
    assert "registry/worker:1" in failed.value.detail


async def test_a_service_that_does_not_run_is_said_to_be_away(tmp_path: Path) -> None:
    with pytest.raises(ImageUnavailable, match="No such file"):
        await service(tmp_path / "s").pull("registry/worker:1", lambda fraction: None)


# Manifests ----------------------------------------------------------------------------------


def test_layers_together_have_the_name_that_the_specification_computes() -> None:
    a, b = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"

    assert chain_id([a]) == a
    assert chain_id([a, b]) == f"sha256:{sha256(f'{a} {b}'.encode()).hexdigest()}"
    with pytest.raises(ValueError, match="no layer"):
        chain_id([])


def test_of_several_platforms_this_machines_is_chosen() -> None:
    index = {
        "manifests": [
            {"digest": "sha256:w", "platform": {"os": "windows", "architecture": "amd64"}},
            {"digest": "sha256:a", "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": "sha256:x", "platform": {"os": "linux", "architecture": "amd64"}},
        ]
    }

    assert choose_platform(index, machine="x86_64") == "sha256:x"
    assert choose_platform(index, machine="aarch64") == "sha256:a"
    with pytest.raises(ValueError, match="linux/riscv64"):
        choose_platform(index, machine="riscv64")


def test_an_image_runs_its_entrypoint_and_one_without_is_refused() -> None:
    config = {"config": {"Entrypoint": ["a", "b"], "Env": ["X=1=2", "Y"], "WorkingDir": "/w"}}

    assert program_of(config) == Program(("a", "b"), {"X": "1=2", "Y": ""}, "/w")
    with pytest.raises(ValueError, match="no entrypoint"):
        program_of({"config": {"Cmd": ["/bin/sh"]}})


async def test_images_are_brought_apart_and_the_nodes_own_is_one_of_them() -> None:
    one, other = Registry(), Registry(is_here=True)

    class Both:
        def find(self, reference: str, index: str | None) -> Image | None:
            return (other if reference == "r/other" else one).find(reference, index)

        async def pull(
            self, reference: str, on_progress: OnProgress, *, index: str | None = None
        ) -> Pulled:
            return await one.pull(reference, on_progress, index=index)

    keepers = ImageKeepers(IMAGE.reference, Both(), Both(), Clock())
    waiting = asyncio.create_task(keepers.of(None).ensure(lambda message: None))
    await one.has_begun.wait()
    await keepers.of("r/other").ensure(lambda message: None)

    assert keepers.of("r/other").is_here and not keepers.of(IMAGE.reference).is_here
    assert keepers.of(None) is keepers.of(IMAGE.reference)
    await keepers.close()
    assert waiting.done() or waiting.cancelling() or await asyncio.wait({waiting})


async def test_an_image_whose_index_is_pinned_is_pulled_by_that_one_though_it_is_here() -> None:
    registry = Registry(is_here=True)
    registry.may_end.set()
    keepers = ImageKeepers(IMAGE.reference, registry, registry, Clock())
    before = keepers.of("r/other")
    await before.ensure(lambda message: None)
    assert (registry.pulls, before.is_here) == (0, True)

    keepers.pin({"r/other": INDEX, IMAGE.reference: INDEX})
    assert not keepers.of("r/other").is_here
    await keepers.of("r/other").ensure(lambda message: None)

    assert (registry.pulls, registry.pulled_by) == (1, INDEX)
    assert keepers.of("r/other").is_here
    assert keepers.of(None) is not keepers.of(IMAGE.reference), "a node's own has no pin"


async def test_a_program_that_pulls_is_told_the_pinned_index() -> None:
    script = "import json, sys; sys.stderr.write(' '.join(sys.argv[1:])); sys.exit(1)"
    program = PullProgram((sys.executable, "-I", "-S", "-c", script), {})
    with pytest.raises(ImageUnavailable, match=f"--index {INDEX} r/other"):
        await program.pull("r/other", lambda fraction: None, index=INDEX)


def test_a_node_remembers_only_so_many_images() -> None:
    registry = Registry()
    keepers = ImageKeepers(IMAGE.reference, registry, registry, Clock())
    first = keepers.of("r/0")
    for number in range(1, MOST_KEEPERS + 2):
        keepers.of(f"r/{number}")
    assert keepers.of("r/0") is not first
