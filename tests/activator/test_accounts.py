"""The account of a cold request, and what it is told while it waits."""

import asyncio
import re

import pytest

from control_plane.activator.call import ReplicaRefused
from control_plane.activator.memory_client import Wire
from control_plane.activator.replica_client import ReplicaRequest
from infra.contracts.model_spec import Limits
from infra.contracts.revision import ReplicaState
from infra.contracts.stage import Stage
from infra.errors import (
    ColdStartTimeout,
)
from tests.activator.world import World, says, scenario, spec, streams


@scenario
async def test_the_report_of_every_held_request_adds_up(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=2)))
    running = [world.start(world.call(n), revision) for n in range(10)]
    await asyncio.sleep(0.25)
    await world.climb(revision, says("hello", seconds=0.05), seconds=3)
    clients = [await one.result() for one in running]

    reports = await world.ledger.last(revision.model, 100)

    assert len(reports) == 10
    for report in reports:
        explained = sum(share.seconds for share in report.shares)
        assert explained + report.unattributed_s == pytest.approx(report.ttft_s, abs=1e-9)
        assert report.unattributed_s == pytest.approx(0, abs=1e-6)
        stages = report.stage_seconds()
        assert stages[Stage.WEIGHTS] == pytest.approx(1)
        assert stages[Stage.PREFILL] == pytest.approx(0.03, abs=1e-6), "decode is no part of it"
        assert report.ttft_s == pytest.approx(
            3.25 + stages[Stage.PREFILL] + stages[Stage.QUEUE] - 0.25
        )
    for client in clients:
        assert client.headers[b"firstlight-cold-start"] == b"true"
        parts = dict(re.findall(rb"([a-z]+);dur=([0-9.]+)", client.headers[b"server-timing"]))
        assert set(parts) == {
            *(b"queue", b"provision", b"runtime", b"weights", b"engine", b"prefill"),
            *(b"unattributed", b"total"),
        } - ({b"provision"} - set(parts))
        total = float(parts.pop(b"total"))
        assert sum(map(float, parts.values())) == pytest.approx(total, abs=0.01)


@scenario
async def test_a_report_can_be_read_as_soon_as_its_answer_has_ended(world: World) -> None:
    world.timelines.write_s = 0.1
    revision = await world.deploy()
    running = world.start(world.call(stream=True), revision)
    await world.climb(revision, streams(2))

    await running.result()

    report = await world.ledger.find(revision.model, running.request_id)
    assert report is not None
    assert report.stage_seconds()[Stage.PREFILL] == pytest.approx(0.1)


@scenario
async def test_the_reports_of_a_burst_share_writes_and_no_answer_waits_for_them(
    world: World,
) -> None:
    world.timelines.write_s = 60
    revision = await world.deploy(spec(limits=Limits(max_concurrency=8)))
    running = [world.start(world.call(n), revision) for n in range(48)]
    await world.climb(revision, says("hello", seconds=0.01))
    ready_at = world.clock.now()

    for one in running:
        await one.result()
    assert world.clock.now() < ready_at + 1
    for one in running:
        assert await world.ledger.find(revision.model, one.request_id) is not None

    sizes = world.timelines.sizes
    assert (sum(sizes), len(sizes)) == (48, 2)


@scenario
async def test_of_a_burst_only_what_the_store_keeps_is_written(world: World) -> None:
    revision = await world.deploy(spec(limits=Limits(max_concurrency=300)))
    running = [world.start(world.call(n), revision) for n in range(300)]
    await world.climb(revision, says("hello", seconds=0.01))

    for one in running:
        await one.result()

    assert len(await world.ledger.last(revision.model, 300)) == world.timelines.cap
    assert world.timelines.sizes == [world.timelines.cap]


@scenario
async def test_the_reports_of_a_deleted_model_do_not_come_back(world: World) -> None:
    world.timelines.write_s = 1
    revision = await world.deploy()
    running = world.start(world.call(), revision)
    await world.climb(revision, says("hello"))
    await running.result()

    await world.ledger.forget(revision.model, now=world.clock.now())

    await asyncio.sleep(5)
    assert await world.ledger.last(revision.model, 10) == ()


@scenario
async def test_a_failed_try_is_part_of_the_account(world: World) -> None:
    revision = await world.deploy()
    doomed = world.ready(revision, says("x", seconds=5))
    running = world.start(world.call(), revision)
    await asyncio.sleep(2)
    world.replicas.kill(doomed)
    world.report(doomed, ReplicaState.FAILED)
    await world.climb(revision, says("hello"), seconds=3)

    await running.result()

    report = await world.ledger.find(revision.model, running.request_id)
    assert report is not None
    assert report.ttft_s == pytest.approx(5)
    assert report.stage_seconds()[Stage.PREFILL] == pytest.approx(2)
    assert report.unattributed_s == pytest.approx(0, abs=1e-6)


@scenario
async def test_a_held_stream_that_asks_is_told_of_every_stage(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(stream=True, progress=True), revision)
    await world.settled()
    assert running.client.has_started, "at once"

    await world.climb(revision, streams(1), seconds=6)
    client = await running.result()

    lines = client.body.decode().split("\n\n")
    assert lines[:7] == [
        ": stage queue 0%",
        ": stage runtime 0%",
        ": stage runtime 50%",
        ": stage weights 0%",
        ": stage weights 50%",
        ": stage engine 0%",
        ": stage engine 50%",
    ]
    assert lines[7].startswith(": server-timing runtime;dur=2000.000, ")
    assert lines[8:] == ["data: 0", ""]
    assert client.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert client.headers[b"firstlight-cold-start"] == b"true"


@scenario
async def test_a_held_stream_is_spoken_to_after_ten_seconds_and_then_in_time(
    world: World,
) -> None:
    revision = await world.deploy()
    running = world.start(world.call(stream=True), revision)
    await asyncio.sleep(9.9)
    assert not running.client.has_started

    await asyncio.sleep(0.2)
    assert running.client.body == b": stage queue 0%\n\n"
    await asyncio.sleep(20)
    assert running.client.body == b": stage queue 0%\n\n" * 3

    world.ready(revision, streams(1))
    await running.result()


@scenario
async def test_an_answer_that_is_no_stream_never_begins_early(world: World) -> None:
    revision = await world.deploy()
    running = world.start(world.call(progress=True), revision)
    await asyncio.sleep(60)

    assert not running.client.has_started
    world.ready(revision)
    await running.result()


@scenario
async def test_a_problem_of_the_replica_after_an_early_head_is_handed_up(world: World) -> None:
    async def refuses(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(400)
        await wire.write(
            b'{"type":"/problems/context-length-exceeded","title":"t","status":400,"detail":"long",'
            b'"error":{"message":"long","type":"invalid_request_error","code":"c"}}'
        )

    revision = await world.deploy()
    running = world.start(world.call(stream=True, progress=True), revision)
    await world.settled()
    world.ready(revision, refuses)

    error = await running.error()

    assert isinstance(error, ReplicaRefused)
    assert error.problem.detail == "long"


@scenario
async def test_a_deadline_after_an_early_head_is_still_typed(world: World) -> None:
    revision = await world.deploy(spec(cold_start=20))
    running = world.start(world.call(stream=True, progress=True), revision)

    error = await running.refused()

    assert isinstance(error, ColdStartTimeout)
    assert running.client.has_started and not running.client.is_finished


@scenario
async def test_a_request_that_outlives_its_model_leaves_no_report_for_a_namesake(
    world: World,
) -> None:
    revision = await world.deploy()
    old = world.start(world.call(stream=True), revision)
    await world.climb(revision, streams(2), seconds=3)
    await world.ledger.forget(revision.model, now=world.clock.now())
    await old.result()
    assert await world.ledger.last(revision.model, 100) == ()
    assert await world.ledger.find(revision.model, old.request_id) is None
