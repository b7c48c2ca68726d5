"""Images are indexed at deploy: in turn, behind everything else, and nothing depends on it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from control_plane.autoscaler.standby_keeper import StandbyKeeper
from control_plane.deployments.image_indexer import FakeImageIndexer
from control_plane.deployments.image_indexing import MOST_TRIES, ImageIndexing
from control_plane.deployments.image_pins import ImagePins, MemoryPinStore, PinStore
from control_plane.deployments.images import KnownImages
from control_plane.deployments.index_program import IndexProgram
from control_plane.deployments.memory_store import MemoryDeploymentStore
from control_plane.deployments.redis_pins import RedisPinStore
from control_plane.deployments.service import Deployments
from control_plane.fleet.node import Node
from control_plane.fleet.standby import StandbyLimits
from control_plane.fleet.state import Fleet
from control_plane.settings import Settings
from infra.contracts.image import ImagePin, ImageState, ImageStatus, ResolvedImage
from infra.contracts.image_index import ImageIndexed
from infra.errors import (
    DependencyMissing,
    Forbidden,
    ImageInvalid,
    ImageUnavailable,
    PlatformError,
    SourceUnavailable,
)
from infra.redis import EmbeddedRedis, connect
from infra.virtual_time import run_virtual
from tests.deployments.test_service import KNOWN
from tests.fleet.makers import N1, a_registration, a_revision, a_spec, an_image, with_image

ONE, TWO = an_image("one"), an_image("two")
INDEX = f"sha256:{'1' * 64}"
REFUSED = Forbidden("r.io/one does not allow us to POST", hint="log in")


@asynccontextmanager
async def running(indexing: ImageIndexing) -> AsyncIterator[None]:
    task = asyncio.create_task(indexing.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def turns() -> None:
    """Until whatever is ready has run."""
    for _ in range(20):
        await asyncio.sleep(0)


def status(indexing: ImageIndexing, image: ResolvedImage = ONE) -> ImageStatus:
    found = indexing.status_of(with_image(a_revision(), image))
    assert found is not None
    return found


def indexing_by(
    indexer: FakeImageIndexer | None, store: PinStore | None = None, **terms: Any
) -> ImageIndexing:
    return ImageIndexing(indexer, ImagePins(store or MemoryPinStore()), **terms)


async def test_images_are_indexed_in_turn_and_say_how_far_they_are():
    indexer = FakeImageIndexer()
    indexing = indexing_by(indexer)
    async with running(indexing):
        for image in (ONE, TWO, ONE):
            indexing.pinned(image)
        await turns()

        one, two = status(indexing), status(indexing, TWO)
        assert (one.state, one.fraction, one.detail) == (
            ImageState.INDEXING,
            0.25,
            "indexing image, 25%",
        )
        assert (two.state, two.detail) == (
            ImageState.WAITING,
            "its index is made after those of others",
        )
        assert not indexing.is_settled(ONE.reference) and not indexing.is_settled(TWO.reference)
        indexer.may_end.set()
        await turns()

    assert indexer.asked == [ONE.reference, TWO.reference]
    assert status(indexing).detail == "2 of 3 layers are mounted; the others are small"
    assert status(indexing).state is status(indexing, TWO).state is ImageState.LAZY
    assert indexing.is_settled(ONE.reference)


@pytest.mark.parametrize(
    ("indexed", "state", "detail"),
    [
        (ImageIndexed(index=INDEX, layers=2, lazy=2), "lazy", "2 of 2 layers are mounted"),
        (
            ImageIndexed(index=INDEX, layers=2, lazy=1, why_not="it is hostile"),
            "lazy",
            "1 of 2 layers are mounted; another one has no index: it is hostile",
        ),
        (
            ImageIndexed(index=None, layers=1, lazy=0),
            "whole",
            "its layers are downloaded whole: all are small",
        ),
    ],
)
async def test_what_is_lazy_of_an_image_is_told(indexed, state, detail):
    indexer = FakeImageIndexer(indexed)
    indexer.may_end.set()
    indexing = indexing_by(indexer)
    async with running(indexing):
        indexing.pinned(ONE)
        await turns()
    assert (status(indexing).state, status(indexing).detail) == (state, detail)


async def test_an_index_that_may_not_be_made_is_told_and_tried_again_at_the_next_deploy_only():
    indexer = FakeImageIndexer(REFUSED)
    indexer.may_end.set()
    indexing = indexing_by(indexer)
    async with running(indexing):
        indexing.pinned(ONE)
        await turns()
        whole = status(indexing)
        assert (whole.state, whole.hint) == (ImageState.WHOLE, "log in")
        assert "downloaded whole: r.io/one does not allow us" in whole.detail
        assert indexing.is_settled(ONE.reference)

        indexer.result = ImageIndexed(index=INDEX, layers=1, lazy=1)
        indexing.pinned(ONE)
        assert indexing.is_settled(ONE.reference), "workers that are parked stay so"
        await turns()
    assert status(indexing).state is ImageState.LAZY
    assert len(indexer.asked) == 2


def test_a_registry_that_is_away_is_asked_again_for_a_while_and_then_no_more():
    async def story() -> None:
        indexer = FakeImageIndexer(SourceUnavailable("r.io does not answer"))
        indexer.may_end.set()
        indexing = indexing_by(indexer)
        async with running(indexing):
            indexing.pinned(ONE)
            await asyncio.sleep(40)
            assert 1 < len(indexer.asked) < MOST_TRIES
            await asyncio.sleep(6 * 3600)
            assert len(indexer.asked) == MOST_TRIES
        assert status(indexing).state is ImageState.WHOLE

    run_virtual(story())


async def test_what_breaks_with_one_image_does_not_keep_the_next_one_waiting():
    indexer = FakeImageIndexer(RuntimeError("ours"))
    indexer.may_end.set()
    indexing = indexing_by(indexer)
    async with running(indexing):
        indexing.pinned(ONE)
        indexing.pinned(TWO)
        await turns()
    assert indexer.asked == [ONE.reference, TWO.reference]
    assert status(indexing).state is ImageState.WHOLE


def test_who_does_not_lead_indexes_nothing_until_it_does():
    async def story() -> None:
        leads = False
        indexer = FakeImageIndexer()
        indexing = indexing_by(indexer, is_leading=lambda: leads)
        async with running(indexing):
            indexing.pinned(ONE)
            await asyncio.sleep(10)
            assert indexer.asked == []
            leads = True
            await asyncio.sleep(2)
            assert indexer.asked == [ONE.reference]

    run_virtual(story())


async def test_without_an_indexer_nothing_is_known_and_nothing_waits():
    indexing = indexing_by(None)
    indexing.pinned(ONE)
    assert status(indexing).state is ImageState.UNKNOWN
    assert indexing.is_settled(ONE.reference)
    assert indexing.status_of(a_revision()) is None


async def test_workers_are_parked_when_the_index_is_there_and_stay_after_a_restart():
    store, known = MemoryDeploymentStore(), KnownImages({"r.io/one:1": ONE.reference})
    pinned = MemoryPinStore()

    def platform(indexer: FakeImageIndexer) -> tuple[Deployments, ImageIndexing, Fleet]:
        pins = ImagePins(pinned)
        deployments, fleet = Deployments(store, KNOWN, known), Fleet(index_of=pins.of)
        deployments.load_before(pins.load)
        indexing = ImageIndexing(indexer, pins)
        limits = StandbyLimits()
        keeper = StandbyKeeper(deployments, fleet, limits=limits, is_settled=indexing.is_settled)
        deployments.subscribe_pinned(indexing.pinned)
        deployments.subscribe(indexing.deployment_changed)
        deployments.subscribe(lambda change: keeper.size(1))
        indexing.subscribe(lambda: keeper.size(2))
        registration = a_registration(runtime="container")
        fleet.join(Node.registered(registration, version=1, lease_s=10, now=0))
        return deployments, indexing, fleet

    def parked(fleet: Fleet) -> list[tuple[str, int]]:
        return [(pool.image, pool.workers) for pool in fleet.desired_state(N1).pools]

    indexer = FakeImageIndexer()
    deployments, indexing, fleet = platform(indexer)
    async with running(indexing):
        await deployments.deploy(a_spec(image="r.io/one:1"), now=1)
        await turns()
        assert parked(fleet) == []
        indexer.may_end.set()
        await turns()
        assert parked(fleet) == [(ONE.reference, 1)]
        assert fleet.desired_state(N1).pins == (ImagePin(image=ONE.reference, index=INDEX),)

    again = FakeImageIndexer()
    deployments, indexing, fleet = platform(again)
    async with running(indexing):
        await deployments.load()
        await turns()
        assert again.asked == [ONE.reference], "it is found again"
        assert again.pins == [INDEX], "and no other"
        assert parked(fleet) == [(ONE.reference, 1)]


@pytest.mark.parametrize("kind", ["memory", pytest.param("redis", marks=pytest.mark.real)])
async def test_the_index_of_an_image_stays_pinned_until_another_had_to_be_made(kind, tmp_path):
    async with AsyncExitStack() as stack:
        store: PinStore = MemoryPinStore()
        if kind == "redis":
            redis = connect((await stack.enter_async_context(EmbeddedRedis(tmp_path))).url)
            stack.push_async_callback(redis.aclose)
            store = RedisPinStore(redis)
        made, other = INDEX, f"sha256:{'2' * 64}"
        indexer = FakeImageIndexer()
        indexer.may_end.set()
        for pinned, found in ((None, made), (made, made), (made, other), (other, None)):
            pins = ImagePins(store)
            await pins.load()
            assert pins.of(ONE.reference) == pinned
            indexer.result = ImageIndexed(index=found, layers=1, lazy=0 if found is None else 1)
            indexing = ImageIndexing(indexer, pins)
            is_settled = asyncio.Event()
            indexing.subscribe(is_settled.set)
            async with running(indexing):
                indexing.pinned(ONE)
                await is_settled.wait()
            assert indexer.pins[-1] == pinned
        assert pins.of(TWO.reference) is None


# -- the program -----------------------------------------------------------------------------------


def program(tmp_path: Path, script: str, **environment: str) -> IndexProgram:
    return IndexProgram(
        environment, tmp_path / "scratch", command=(sys.executable, "-I", "-S", "-c", script)
    )


def saying(*lines: dict[str, object], code: int = 0) -> str:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    return f"import sys; sys.stdout.write({text!r}); sys.exit({code})"


async def test_the_program_is_heard_and_its_folder_goes_with_it(tmp_path):
    script = (
        "import json, os, sys\n"
        "open(os.environ['TMPDIR'] + '/layer', 'w').write('x')\n"
        "print(json.dumps({'kind': 'progress', 'fraction': 0.5}))\n"
        "secret = [name for name in os.environ if name.startswith('PLATFORM_')]\n"
        "said = ' '.join([*sys.argv[1:], *sorted(secret)])\n"
        "none = {'kind': 'indexed', 'index': None, 'layers': 2, 'lazy': 0, 'why_not': said}\n"
        "print(json.dumps(none))\n"
    )
    indexer = program(
        tmp_path, script, PLATFORM_API_KEY="secret", PLATFORM_SNAPSHOTTER_DOCKER_CONFIG="x"
    )
    heard: list[float] = []

    indexed = await indexer.index("r.io/one", heard.append, pin=INDEX)

    names = "PLATFORM_SNAPSHOTTER_DOCKER_CONFIG PLATFORM_SNAPSHOTTER_PLAIN_HTTP"
    said = f"--index {INDEX} r.io/one {names}"
    assert indexed == ImageIndexed(index=None, layers=2, lazy=0, why_not=said)
    assert heard == [0.5]
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    ("script", "kind", "why"),
    [
        (
            saying({"kind": "failed", "code": "source-unavailable", "detail": "away"}, code=1),
            SourceUnavailable,
            "away",
        ),
        (
            saying({"kind": "failed", "code": "dependency-missing", "detail": "zstd"}, code=1),
            DependencyMissing,
            "zstd",
        ),
        (
            saying({"kind": "failed", "code": "forbidden", "detail": "no"}, code=1),
            ImageUnavailable,
            "no",
        ),
        (
            saying({"kind": "failed", "code": "image-invalid", "detail": "odd"}, code=1),
            ImageInvalid,
            "odd",
        ),
        ("import sys; sys.exit('broken\\nvery broken')", ImageUnavailable, "ended: very broken"),
        ("import os; os.kill(os.getpid(), 9)", ImageUnavailable, "status -9"),
        ("print('no json')", ImageUnavailable, "the program that indexes: "),
        ("print('x' * 100_000)", ImageUnavailable, "the program that indexes: "),
    ],
)
async def test_however_the_program_ends_it_is_one_of_our_errors(tmp_path, script, kind, why):
    with pytest.raises(PlatformError, match=why) as failed:
        await program(tmp_path, script).index("r.io/one", lambda fraction: None, pin=None)
    assert type(failed.value) is kind
    assert not (tmp_path / "scratch").exists()


async def test_who_no_longer_waits_ends_the_program(tmp_path):
    script = (
        "import json, signal\n"
        "print(json.dumps({'kind': 'progress', 'fraction': 0.1}), flush=True)\n"
        "signal.pause()\n"
    )
    begun = asyncio.Event()
    indexing = asyncio.create_task(
        program(tmp_path, script).index("r.io/one", lambda fraction: begun.set(), pin=None)
    )
    await begun.wait()
    indexing.cancel()
    await asyncio.wait({indexing}, timeout=30)
    assert indexing.cancelled()


def test_images_are_indexed_where_some_node_may_mount_them():
    assert not Settings(capacity="local").indexes_images
    assert Settings(capacity="none").indexes_images
    assert Settings(snapshotter="firstlight").indexes_images
    assert not Settings(capacity="none", index_images=False).indexes_images
    assert Settings(index_images=True).indexes_images
