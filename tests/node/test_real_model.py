"""The whole cold start with a real model: the agent, the fork server, the engine and the server."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest

from infra.contracts.model_spec import EngineSettings
from infra.contracts.node import ReplicaAssignment, ReplicaReport
from infra.contracts.revision import ReplicaState, ResolvedSource
from infra.contracts.stage import Rung, Stage
from infra.errors import SourceInvalid
from infra.sources.file import FileSource
from tests.node.makers import assignment, desired, may_sleep
from tests.node.real_node import REAL, RealNode, real_node
from tests.support.native import native

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture
async def node(environment: dict[str, str]) -> AsyncIterator[RealNode]:
    async with real_node(environment, REAL) as running:
        yield running


@pytest.fixture(scope="module")
def source(smollm2_dir: Path) -> ResolvedSource:
    return FileSource().resolve(smollm2_dir.as_uri())[0]


def of(source: ResolvedSource, name: str = "r1") -> ReplicaAssignment:
    return assignment(name).model_copy(update={"source": source})


KEY = {"Authorization": f"Bearer {assignment().token}"}


def completions(report: ReplicaReport) -> str:
    return f"http://{report.host}:{report.port}/v1/completions"


async def complete(report: ReplicaReport, max_tokens: int = 4) -> str:
    async with httpx.AsyncClient(timeout=60) as client:
        response = await client.post(
            completions(report),
            headers=KEY,
            json={
                "model": "tiny",
                "prompt": "The capital of France is",
                "max_tokens": max_tokens,
                "temperature": 0,
            },
        )
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def assert_accounts_for_its_climb(report: ReplicaReport, *, is_parked: bool) -> None:
    assert report.from_rung is (Rung.RUNTIME if is_parked else Rung.NODE)
    assert [(timing.stage, timing.source) for timing in report.stages] == [
        (Stage.RUNTIME, "parked" if is_parked else "spawn"),
        (Stage.WEIGHTS, "mmap"),
        (Stage.ENGINE, None),
    ]
    for before, after in zip(report.stages, report.stages[1:], strict=False):
        assert after.started_at == pytest.approx(before.ended_at, abs=1e-5)
    assert (report.stages[1].bytes or 0) > 200 << 20


async def test_a_draft_model_guesses_and_the_answer_stays_as_it_was(
    node: RealNode, source: ResolvedSource
) -> None:
    with_draft = of(source, "r2").model_copy(
        update={
            "draft_source": source,
            "engine": EngineSettings(speculation="draft", draft_source=source.uri),
        }
    )
    node.fake.want(desired(of(source), with_draft, version=1))
    plain = await node.until_state(ReplicaState.READY, "r1")
    drafted = await node.until_state(ReplicaState.READY, "r2")

    answers = [await complete(each, max_tokens=24) for each in (plain, drafted)]

    assert answers[0] == answers[1]
    assert [part.name for part in drafted.stages[1].parts] == ["files", "map", "draft"]
    assert "draft" in [part.name for part in drafted.stages[2].parts]
    async with httpx.AsyncClient() as client:
        metrics = await client.get(f"http://{drafted.host}:{drafted.port}/metrics", headers=KEY)
    counts = dict(line.split() for line in metrics.text.splitlines() if not line.startswith("#"))
    assert int(counts["firstlight_replica_accepted_tokens_total"]) > 0


async def test_a_draft_model_with_other_tokens_ends_the_climb_for_good(
    node: RealNode, source: ResolvedSource, smollm2_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(smollm2_dir, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = sorted(vocabulary, key=vocabulary.__getitem__)[1000:1002]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    draft = FileSource().resolve(folder.as_uri())[0]
    settings = EngineSettings(speculation="draft", draft_source=draft.uri)
    update = {"draft_source": draft, "engine": settings}

    node.fake.want(desired(of(source).model_copy(update=update), version=1))
    report = await node.until_state(ReplicaState.FAILED)

    assert report.failure is not None and report.failure.is_permanent
    assert report.failure.code == SourceInvalid.slug
    assert "has other tokens than" in report.failure.detail


async def test_a_fork_server_with_torch_has_one_thread_and_its_forks_agree(
    node: RealNode, source: ResolvedSource
) -> None:
    node.fake.want(desired(standby=1, version=1).model_copy(update={"prepare": (source,)}))
    await node.until_parked(1)
    (zygote,) = node.named("fl-zygote")
    assert zygote.num_threads() == 1

    node.fake.want(desired(of(source, "r1"), of(source, "r2"), standby=1, version=2))
    first = await node.until_state(ReplicaState.READY, "r1")
    second = await node.until_state(ReplicaState.READY, "r2")

    assert_accounts_for_its_climb(first, is_parked=True)
    assert second.stages[0].source == "fork"
    answers = await asyncio.gather(complete(first), complete(second))
    assert answers[0] == answers[1]
    assert "Paris" in answers[0]
    assert zygote.num_threads() == 1


async def test_a_model_wakes_answers_and_lets_a_request_finish_before_it_ends(
    node: RealNode, source: ResolvedSource
) -> None:
    node.fake.want(desired(of(source), version=1))
    report = await node.until_state(ReplicaState.READY)
    assert_accounts_for_its_climb(report, is_parked=False)
    assert "Paris" in await complete(report)
    body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 40, "stream": True}

    lines: list[str] = []
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", completions(report), headers=KEY, json=body) as response,
    ):
        async for line in response.aiter_lines():
            if not lines:  # the first token is here
                drain = of(source).model_copy(update={"desired": "drain"})
                node.fake.want(desired(drain, version=2))
            lines.append(line)

    assert "data: [DONE]" in lines
    await node.until_state(ReplicaState.STOPPED)
    await node.until(lambda: not node.named("fl-replica"), "it has exited")


@native
async def test_what_a_replica_packed_is_there_for_the_next_however_short_it_lived(
    node: RealNode, source: ResolvedSource
) -> None:
    for version, origin in ((1, "mmap"), (3, "packed")):
        node.fake.want(desired(of(source, f"r{version}"), version=version))
        report = await node.until_state(ReplicaState.READY, f"r{version}")
        assert report.stages[1].source == origin
        assert "Paris" in await complete(report)
        drain = of(source, f"r{version}").model_copy(update={"desired": "drain"})
        node.fake.want(desired(drain, version=version + 1))
        await node.until_state(ReplicaState.STOPPED, f"r{version}")


def private_bytes(process: psutil.Process) -> int:
    """What would come back to the machine if it ended, weights that are mapped aside."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines[1:])["Anonymous"].split()[0]) << 10


async def test_a_sleeper_keeps_the_model_and_gives_everything_else_back(
    node: RealNode, source: ResolvedSource
) -> None:
    """Again and again: 4 prompts fill the KV cache, and each time it is gone again."""
    kept: list[int] = []
    open_things: list[tuple[int, int]] = []
    answers: list[str] = []
    origins: list[str | None] = []
    for number in range(3):
        run = of(source, f"r{number}").model_copy(update={"sleep_s": 60})
        node.fake.want(may_sleep(desired(run, version=3 * number + 1)))
        report = await node.until_state(ReplicaState.READY, f"r{number}")
        origins.append(report.stages[1].source)
        answers.append(await complete(report))
        await fill_cache(report)
        (process,) = node.named("fl-replica")
        serving = private_bytes(process)
        drain = run.model_copy(update={"desired": "drain"})
        node.fake.want(may_sleep(desired(drain, version=3 * number + 2)))
        await node.until_state(ReplicaState.STOPPED, f"r{number}")
        kept.append(private_bytes(process))
        open_things.append((process.num_fds(), process.num_threads()))
        assert serving - kept[-1] > FILLED_BYTES
        node.fake.want(may_sleep(desired(version=3 * number + 3)))

    assert origins == ["mmap", *["asleep"] * 2]
    assert len(set(answers)) == 1 and "Paris" in answers[0]
    assert kept[-1] - kept[1] < _SCATTER_BYTES, kept
    assert open_things[-1] == open_things[1]
    assert node.fake.reports[-1].sleepers[0].memory_bytes > 0
    before = process.cpu_times()
    await asyncio.sleep(1)
    after = process.cpu_times()
    assert after.user + after.system == before.user + before.system


# How prompts fall into steps varies, and with it what the allocator holds for the largest of them.
_SCATTER_BYTES = 24 << 20
# 4 prompts of 400 tokens each with 23,040 bytes of keys and values; less, for what is shared.
FILLED_BYTES = 4 * 400 * 23_040 * 9 // 10


async def fill_cache(report: ReplicaReport) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        bodies = [
            {"model": "tiny", "prompt": [number + 100] * 400, "max_tokens": 1}
            for number in range(4)
        ]
        url = completions(report)
        asked = [client.post(url, headers=KEY, json=body) for body in bodies]
        for response in await asyncio.gather(*asked):
            assert response.status_code == 200, response.text
        again = await client.post(url, headers=KEY, json=bodies[0])
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 300


async def test_a_replica_that_wakes_knows_nothing_of_what_was_asked_before(
    node: RealNode, source: ResolvedSource
) -> None:
    for number, version in ((1, 1), (2, 4)):
        run = of(source, f"r{number}").model_copy(update={"sleep_s": 60, "token": f"t{number}" * 9})
        node.fake.want(may_sleep(desired(run, version=version)))
        report = await node.until_state(ReplicaState.READY, f"r{number}")
        key = {"Authorization": f"Bearer {run.token}"}
        body = {"model": "tiny", "prompt": [7] * 200, "max_tokens": 1}
        async with httpx.AsyncClient(timeout=60) as client:
            if number == 2:
                refused = await client.post(completions(report), headers=KEY, json=body)
                assert refused.status_code == 401
            metrics = await client.get(
                completions(report).replace("/v1/completions", "/metrics"), headers=key
            )
            response = await client.post(completions(report), headers=key, json=body)
        assert "steps_total 0\n" in metrics.text
        details = response.json()["usage"].get("prompt_tokens_details") or {}
        assert details.get("cached_tokens", 0) == 0
        drain = run.model_copy(update={"desired": "drain"})
        node.fake.want(may_sleep(desired(drain, version=version + 1)))
        await node.until_state(ReplicaState.STOPPED, f"r{number}")
        node.fake.want(may_sleep(desired(version=version + 2)))
    assert report.from_rung is Rung.WEIGHTS


async def test_a_folder_that_changed_since_it_was_deployed_fails_for_good(
    node: RealNode, smollm2_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(smollm2_dir, folder)
    deployed = FileSource().resolve(folder.as_uri())[0]
    config = (folder / "config.json").read_text()
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(config.replace("576", "640"))

    node.fake.want(desired(of(deployed)))

    report = await node.until_state(ReplicaState.FAILED)
    assert report.failure is not None
    assert (report.failure.code, report.failure.is_permanent) == ("source-changed", True)
    assert "has changed" in report.failure.detail
