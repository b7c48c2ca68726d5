"""A model gets new revisions while requests are held, run and fail: each ends on its own."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from control_plane.capacity.simulated.script import Script
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.job import JobState
from infra.contracts.revision import ReplicaState
from infra.virtual_time import run_virtual
from tests.activator.world import says
from tests.api.test_jobs import accepted, fails, until_over, until_running, work
from tests.api.test_tenants import Headers, deploy, with_keys
from tests.api.world import CHAT, EdgeWorld, Exchange, scenario
from tests.fleet.makers import SOURCE
from tests.fleet.world import CRASH, SLOW, World

Main = Callable[[EdgeWorld], Coroutine[Any, Any, None]]


def in_world(main: Main) -> None:
    """Runs a test under virtual time, with replicas that climb for 25 s."""

    async def run() -> None:
        async with World(script=SLOW) as world:
            edge = EdgeWorld(world)
            await world.deploy(scaling={"grace": 60})
            await main(edge)
            await edge.settled()
            edge.check()
            await edge.replicas.close()

    run_virtual(run())


def start_chat(edge: EdgeWorld) -> Exchange:
    return edge.start(
        "POST",
        "/v1/chat/completions",
        b'{"model":"chat","messages":[{"role":"user","content":"hi"}]}',
    )


def test_the_held_are_served_by_their_own_revision_after_a_deploy():
    async def main(edge: EdgeWorld) -> None:
        held = [start_chat(edge) for _ in range(20)]
        await asyncio.sleep(5)
        await edge.world.deploy(scaling={"grace": 50})
        later = [start_chat(edge) for _ in range(5)]

        for one in (*held, *later):
            await one.done()

        assert {(one.status, one.headers["firstlight-revision"]) for one in held} == {
            (200, "chat@1")
        }
        assert {(one.status, one.headers["firstlight-revision"]) for one in later} == {
            (200, "chat@2")
        }
        await asyncio.sleep(2)
        assert edge.world.fleet.counts(RevisionName("chat@1")).ready == 0, "nobody needs it"

    in_world(main)


def test_who_is_held_for_a_broken_revision_hears_why_although_a_good_one_follows():
    broken = Script(stages=SLOW.stages, fails_after=2, failure=CRASH)

    async def main(edge: EdgeWorld) -> None:
        edge.world.capacity._script = lambda it: broken if it.revision == "chat@1" else Script()
        held = [start_chat(edge) for _ in range(3)]
        await asyncio.sleep(5)
        await edge.world.deploy(scaling={"grace": 50})
        later = start_chat(edge)

        for one in (*held, later):
            await one.done()

        assert later.status == 200
        for one in held:
            problem = one.problem()
            assert (one.status, problem["type"]) == (503, "/problems/replica-failed")
            assert "chat@1" in problem["detail"] and "out of memory" in problem["detail"]
        await asyncio.sleep(60)
        assert edge.world.fleet.of_revision(RevisionName("chat@1")) == ()
        assert edge.world.autoscaler.decisions(RevisionName("chat@1")) == ()

    in_world(main)


def test_a_replica_of_a_former_revision_that_dies_is_replaced_for_those_it_served():
    async def main(edge: EdgeWorld) -> None:
        edge.script = says("hello", seconds=100)
        running = start_chat(edge)
        await edge.world.until(lambda: edge.replicas.running)
        await edge.world.deploy(scaling={"grace": 50})
        edge.script = says("again")
        edge.world.machine().crash(edge.world.fleet.replicas()[0].replica_id)

        await running.done()

        assert (running.status, running.headers["firstlight-revision"]) == (200, "chat@1")
        assert len(edge.world.moves(ReplicaState.FAILED)) == 1

    in_world(main)


def test_only_a_deletion_sends_the_held_away_whatever_their_revision():
    async def main(edge: EdgeWorld) -> None:
        held = [start_chat(edge)]
        await asyncio.sleep(5)
        await edge.world.deploy(scaling={"grace": 50})
        held.append(start_chat(edge))
        await asyncio.sleep(5)
        await edge.world.deployments.delete(ModelName("chat"), now=edge.world.now())
        await edge.world.deploy()

        for one in held:
            await one.done()
            assert (one.status, one.problem()["type"]) == (404, "/problems/model-not-found")
        assert (await edge.chat()).headers["firstlight-revision"] == "chat@3"
        assert edge.world.fleet.of_revision(RevisionName("chat@1")) == ()

    in_world(main)


def test_a_job_runs_on_the_revision_picked_at_its_start_and_not_at_its_acceptance():
    async def main(edge: EdgeWorld) -> None:
        edge.script = says("hello", seconds=10)
        first = await accepted(edge)
        await edge.world.deploy(scaling={"grace": 50})
        work(edge)
        await until_running(edge)
        await edge.world.deploy(scaling={"grace": 40})

        status = await until_over(edge, first)

        assert status.state is JobState.SUCCEEDED
        [sent] = edge.replicas.sent
        assert sent.replica_id.startswith("chat-2-")
        assert len(edge.world.moves(ReplicaState.READY)) == 1

    in_world(main)


# -- the routes ------------------------------------------------------------------------------------


async def put(edge: EdgeWorld, grace: int, query: str = "") -> dict[str, Any]:
    """Deploys `chat` with this grace; an earlier one with the same is the same revision."""
    spec = {"name": "chat", "source": SOURCE, "scaling": {"grace": grace}}
    answer = await edge.call("PUT", f"/v1/models/chat{query}", spec)
    assert answer.status == 202, answer.text
    return dict(answer.json())


async def get(edge: EdgeWorld, path: str) -> Any:
    answer = await edge.call("GET", f"/v1/models/chat{path}")
    assert answer.status == 200, answer.text
    return answer.json()


def split(**percents: int) -> list[dict[str, Any]]:
    """`split(r2=90, r1=10)` as the routes show it."""
    return [
        {"revision": f"chat@{name[1:]}", "percent": percent} for name, percent in percents.items()
    ]


@scenario
async def test_a_canary_is_deployed_dark_given_a_share_and_rolled_back(edge: EdgeWorld) -> None:
    dark = await put(edge, 40, "?traffic=false")
    assert (dark["revision"], dark["traffic"]) == ("chat@2", split(r1=100))
    before = await get(edge, "/traffic")
    asked = {"traffic": {"chat@1": 80, "chat@2": 20}, "generation": before["generation"]}

    answer = await edge.call("PUT", "/v1/models/chat/traffic", asked)
    assert answer.json() == {
        "name": "chat",
        "generation": before["generation"] + 1,
        "traffic": split(r1=80, r2=20),
    }
    answers = [await edge.chat() for _ in range(10)]
    served = [one.headers["firstlight-revision"] for one in answers]
    assert served.count("chat@2") == 2
    assert (await get(edge, ""))["traffic"] == split(r1=80, r2=20)
    listed = (await get(edge, "/revisions"))["data"]
    shown = [
        (one["revision"], one["percent"], one["is_previous"], one["replicas"]) for one in listed
    ]
    assert shown == [("chat@2", 20, False, 1), ("chat@1", 80, True, 1)]
    assert [(one["requests"], one["failed"]) for one in listed] == [(2, 0), (8, 0)]
    assert all({"path", "size", "digest"} == file.keys() for one in listed for file in one["files"])
    assert all(one["files"] for one in listed)
    explained = await get(edge, "/explain")
    assert {one["revision"] for one in explained["decisions"]} == {"chat@1", "chat@2"}
    assert "chat@1 (80 %): 1 replica ready" in explained["reason"]

    rolled_back = await edge.call("POST", "/v1/models/chat/rollback")
    assert rolled_back.json()["traffic"] == split(r1=100)
    lines = edge.world.logbook.last(ModelName("chat"), 1000)
    said = [line.text for line in lines if "go to chat@" in line.text]
    assert said == [
        "80 % of requests go to chat@1; 20 % of requests go to chat@2",
        "requests go to chat@1",
    ]


@scenario
async def test_what_a_revision_answered_is_counted_until_it_is_long_gone(edge: EdgeWorld) -> None:
    async def counted() -> set[str]:
        metrics = (await edge.call("GET", "/metrics")).text.splitlines()
        return {line for line in metrics if line.startswith("firstlight_requests_total{")}

    def line(code: int, number: int, count: int) -> str:
        labels = f'code="{code}",model="chat",revision="chat@{number}"'
        return f"firstlight_requests_total{{{labels}}} {count}.0"

    await edge.chat()
    edge.script = fails(500, "internal")
    await put(edge, 40)
    for _ in range(2):
        assert (await edge.chat()).status == 500
    assert await counted() == {line(200, 1, 1), line(500, 2, 2)}
    shown = (await get(edge, "/revisions"))["data"]
    assert [(one["requests"], one["failed"]) for one in shown] == [(2, 2), (1, 0)]

    await edge.call("POST", "/v1/models/chat/rollback")
    assert await counted() == {line(200, 1, 1), line(500, 2, 2)}
    await put(edge, 50)
    assert await counted() == {line(200, 1, 1)}


@scenario
async def test_a_session_stays_on_its_revision(edge: EdgeWorld) -> None:
    await put(edge, 40)
    await edge.call("PUT", "/v1/models/chat/traffic", {"traffic": {"chat@1": 50, "chat@2": 50}})
    homes = set()
    for session in map(str, range(12)):
        answers = [
            await edge.call(
                "POST", "/v1/chat/completions", CHAT, headers={"firstlight-session": session}
            )
            for _ in range(3)
        ]
        [home] = {one.headers["firstlight-revision"] for one in answers}
        homes.add(home)
    assert homes == {"chat@1", "chat@2"}


@scenario
async def test_a_rollback_names_any_revision_and_a_deployment_takes_all_again(
    edge: EdgeWorld,
) -> None:
    for grace in (40, 50):
        await put(edge, grace)
    named = await edge.call("POST", "/v1/models/chat/rollback", {"revision": "chat@1"})
    back = await edge.call("POST", "/v1/models/chat/rollback", {})
    assert (named.json()["traffic"], back.json()["traffic"]) == (split(r1=100), split(r3=100))
    assert (await put(edge, 40))["traffic"] == split(r2=100)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "slug"),
    [
        ("PUT", "/traffic", {"traffic": {"chat@1": 90}}, 400, "invalid-request"),
        ("PUT", "/traffic", {"traffic": {}}, 400, "invalid-request"),
        ("PUT", "/traffic", {"traffic": {"chat@1": 101, "chat@2": -1}}, 400, "invalid-request"),
        ("PUT", "/traffic", {"traffic": {"chat@1": 100.5}}, 400, "invalid-request"),
        ("PUT", "/traffic", {"traffic": {"chat@1": "100"}}, 400, "invalid-request"),
        ("PUT", "/traffic", {"traffic": [100]}, 400, "invalid-request"),
        ("PUT", "/traffic", {"shares": {"chat@1": 100}}, 400, "invalid-request"),
        ("PUT", "/traffic", {"traffic": {"chat@7": 100}}, 404, "revision-not-found"),
        ("PUT", "/traffic", {"traffic": {"other@1": 100}}, 404, "revision-not-found"),
        ("PUT", "/traffic", {"traffic": {"x" * 200: 100}}, 400, "invalid-request"),
        ("PUT", "/traffic", {"traffic": {"chat@1": 100}, "generation": 99}, 409, "conflict"),
        ("PUT", "/traffic", b"{", 400, "malformed-json"),
        ("POST", "/rollback", {"revision": "chat@7"}, 404, "revision-not-found"),
        ("POST", "/rollback", {"generation": 99}, 409, "conflict"),
        ("POST", "/rollback", {}, 409, "conflict"),
        ("POST", "/rollback", {"to": "chat@1"}, 400, "invalid-request"),
        ("POST", "/warm", {"revision": "chat@7"}, 404, "revision-not-found"),
        ("POST", "/warm", {"revision": "chat@1", "replicas": 0}, 400, "invalid-request"),
        ("POST", "/warm", {"revision": "chat@1", "seconds": 1e9}, 400, "invalid-request"),
        ("POST", "/warm", {}, 400, "invalid-request"),
        ("PUT", "?traffic=maybe", {"name": "chat", "source": SOURCE}, 400, "invalid-request"),
        ("GET", "/rollback", b"", 405, "method-not-allowed"),
    ],
)
def test_what_cannot_be_is_a_typed_error_and_changes_nothing(
    method: str, path: str, body: Any, status: int, slug: str
):
    @scenario
    async def main(edge: EdgeWorld) -> None:
        before = await get(edge, "/traffic")
        headers = {"content-type": "application/json"}
        answer = await edge.call(method, f"/v1/models/chat{path}", body, headers=headers)
        assert (answer.status, answer.problem()["type"]) == (status, f"/problems/{slug}")
        assert await get(edge, "/traffic") == before

    main()


def test_a_served_model_gets_a_new_revision_only_when_that_is_warm():
    async def main(edge: EdgeWorld) -> None:
        assert (await edge.chat()).status == 200
        spec = {"name": "chat", "source": SOURCE, "scaling": {"grace": 50}}

        deployed = await edge.call("PUT", "/v1/models/chat?traffic=unless-served", spec)

        assert deployed.json()["revision"] == "chat@2"
        assert deployed.json()["traffic"] == [{"revision": "chat@1", "percent": 100}]
        asked, polls = {"revision": "chat@2"}, 0
        while True:
            warm = await edge.call("POST", "/v1/models/chat/warm", asked)
            assert (warm.status, warm.json()["replicas"]) == (202, 1)
            if warm.json()["ready"]:
                break
            assert (await edge.chat()).headers["firstlight-revision"] == "chat@1"
            await asyncio.sleep(1)
            polls += 1
        assert 20 < polls < 30, "it climbs for 25 s"
        await edge.call("PUT", "/v1/models/chat/traffic", {"traffic": {"chat@2": 100}})
        answer = await edge.chat()
        assert answer.headers["firstlight-revision"] == "chat@2"
        assert "firstlight-cold-start" not in answer.headers

    in_world(main)


@scenario
async def test_a_model_that_nobody_serves_gets_a_new_revision_at_once(edge: EdgeWorld) -> None:
    for grace, revision in ((40, "poet@1"), (50, "poet@2")):
        spec = {"name": "poet", "source": SOURCE, "scaling": {"grace": grace}}
        deployed = await edge.call("PUT", "/v1/models/poet?traffic=unless-served", spec)
        assert deployed.json()["traffic"] == [{"revision": revision, "percent": 100}]


@scenario
async def test_a_new_model_cannot_be_deployed_without_traffic(edge: EdgeWorld) -> None:
    spec = {"name": "poet", "source": SOURCE}
    answer = await edge.call("PUT", "/v1/models/poet?traffic=false", spec)
    assert (answer.status, answer.problem()["type"]) == (400, "/problems/invalid-request")
    assert (await edge.call("GET", "/v1/models/poet")).status == 404


@with_keys
async def test_another_tenants_traffic_is_not_there(
    edge: EdgeWorld, acme: Headers, beta: Headers
) -> None:
    for grace in (40, 50):
        assert await deploy(edge, acme, "poet", shared=True, scaling={"grace": grace}) == 202
    for method, path, body in (
        ("GET", "revisions", b""),
        ("GET", "traffic", b""),
        ("PUT", "traffic", {"traffic": {"poet@1": 100}}),
        ("POST", "rollback", {}),
        ("POST", "warm", {"revision": "poet@1"}),
    ):
        answer = await edge.call(method, f"/v1/models/poet/{path}", body, headers=beta)
        assert (answer.status, answer.problem()["type"]) == (404, "/problems/model-not-found")
    rolled_back = await edge.call("POST", "/v1/models/poet/rollback", headers=acme)
    assert rolled_back.json()["traffic"] == [{"revision": "poet@1", "percent": 100}]
