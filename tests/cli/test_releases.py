import json
from pathlib import Path

import httpx
import pytest

from infra.errors import Conflict, RevisionNotFound
from tests.cli.conftest import Run
from tests.cli.fake_platform import FakePlatform, as_json, listed, model, model_json, problem

MODEL = "/v1/models/chat"
SPLIT = {
    "name": "chat",
    "generation": 7,
    "traffic": [{"revision": "chat@1", "percent": 90}, {"revision": "chat@2", "percent": 10}],
}
WHOLE = {"name": "chat", "generation": 8, "traffic": [{"revision": "chat@1", "percent": 100}]}
REVISION = {
    "revision": "chat@2",
    "percent": 10,
    "is_previous": False,
    "source": "file:///models/chat\x1b[2J",
    "digest": "sha256:0",
    "created_at": 1_700_000_000.0,
    "replicas": 1,
    "in_flight": 3,
    "waiting": 0,
    "requests": 23,
    "failed": 1,
}
SHOWN = "REVISION  TRAFFIC\nchat@1        90%\nchat@2        10%\n"


def revisions(replicas: dict[int, int]) -> httpx.Response:
    """Revisions with so many ready replicas each; all requests go to the first."""
    status = {
        "is_previous": False,
        "source": "file:///models/chat",
        "digest": "sha256:0",
        "created_at": 1_700_000_000,
        "in_flight": 0,
        "waiting": 0,
        "requests": 0,
        "failed": 0,
    }
    data = [
        status | {"revision": f"chat@{it}", "percent": 100 if it == 1 else 0, "replicas": count}
        for it, count in replicas.items()
    ]
    return as_json({"object": "list", "data": data})


def warm(revision: str, ready: int, *, of: int, state: str = "starting") -> httpx.Response:
    status = {"revision": revision, "replicas": of, "ready": ready, "until": 1_700_000_060}
    return as_json(status | {"state": state, "reason": "1 replica starting: weights 40 %"}, 202)


def test_requests_are_switched_when_what_they_go_to_is_warm(
    run: Run, platform: FakePlatform
) -> None:
    platform.answer(f"GET {MODEL}/revisions", revisions({1: 4, 2: 0, 3: 1}))
    platform.answer(
        f"POST {MODEL}/warm",
        warm("chat@2", 0, of=2),
        warm("chat@2", 1, of=2),
        warm("chat@2", 2, of=2, state="ready"),
    )
    platform.answer(f"GET {MODEL}/traffic", as_json(WHOLE))
    platform.answer(f"PUT {MODEL}/traffic", as_json(SPLIT))

    outcome = run("traffic", "chat", "1=40", "2=40", "3=20")

    assert outcome.code == 0
    asked = [f"{it.method} {it.url.path}" for it in platform.requests]
    assert asked == [
        f"GET {MODEL}/traffic",
        f"GET {MODEL}/revisions",
        *(f"POST {MODEL}/warm",) * 3,
        f"PUT {MODEL}/traffic",
    ]
    assert platform.asked(2) == {"revision": "chat@2", "replicas": 2}
    assert platform.asked()["generation"] == 8, "who rolls back meanwhile is not overruled"


@pytest.mark.parametrize(
    ("state", "message"),
    [("failing", "chat@2 cannot start: 1 replica"), ("starting", "is not ready after 30 s")],
)
def test_what_is_not_warm_in_time_gets_no_requests(
    run: Run, platform: FakePlatform, state: str, message: str
) -> None:
    platform.answer(f"GET {MODEL}/traffic", as_json(WHOLE))
    platform.answer(f"GET {MODEL}/revisions", revisions({1: 1, 2: 0}))
    platform.answer(f"POST {MODEL}/warm", warm("chat@2", 0, of=1, state=state))

    outcome = run("traffic", "chat", "2=100", "--timeout", "30")

    assert outcome.code == 1 and message in outcome.err
    assert "no request was switched to it" in outcome.err and "hint: --now" in outcome.err
    assert not any(it.method == "PUT" for it in platform.requests)

    platform.answer(f"PUT {MODEL}/traffic", as_json(WHOLE))
    assert run("traffic", "chat", "2=100", "--now").code == 0


def test_a_deployment_over_one_that_is_served_is_switched_when_it_is_warm(
    run: Run, platform: FakePlatform, tmp_path: Path
) -> None:
    spec = tmp_path / "model.yaml"
    spec.write_text("name: chat\nsource: ./smollm2\n")
    platform.answer(f"PUT {MODEL}", model_json(model(number=2, traffic={1: 100}), 202))
    platform.answer(f"GET {MODEL}/traffic", as_json(WHOLE))
    platform.answer(f"GET {MODEL}/revisions", revisions({1: 1, 2: 0}))
    platform.answer(
        f"POST {MODEL}/warm", warm("chat@2", 0, of=1), warm("chat@2", 1, of=1, state="ready")
    )
    platform.answer(f"PUT {MODEL}/traffic", as_json(WHOLE))
    platform.answer(f"GET {MODEL}", model_json(model(number=2, traffic={2: 100})))

    outcome = run("deploy", str(spec))

    assert outcome.code == 0 and outcome.out.startswith("chat@2 is deployed: ")
    assert platform.requests[0].url.query == b"traffic=unless-served"
    switch = next(
        it for it in platform.requests if it.url.path == f"{MODEL}/traffic" and it.content
    )
    assert json.loads(switch.content) == {"traffic": {"chat@2": 100}, "generation": 8}

    platform.answer(f"PUT {MODEL}", model_json(model(number=3), 202))
    assert run("deploy", str(spec), "--now").code == 0
    assert platform.requests[-1].url.query == b"traffic=true"


def test_a_canary_that_is_deployed_again_is_sent_all_requests_when_it_is_warm(
    run: Run, platform: FakePlatform, tmp_path: Path
) -> None:
    spec = tmp_path / "model.yaml"
    spec.write_text("name: chat\nsource: ./smollm2\n")
    platform.answer(f"PUT {MODEL}", model_json(model(number=2, traffic={1: 90, 2: 10}), 202))
    platform.answer(f"GET {MODEL}/traffic", as_json(SPLIT))
    platform.answer(f"GET {MODEL}/revisions", revisions({1: 1, 2: 1}))
    platform.answer(f"PUT {MODEL}/traffic", as_json(WHOLE))
    platform.answer(f"GET {MODEL}", model_json(model(number=2, traffic={2: 100})))

    assert run("deploy", str(spec)).code == 0

    [switch] = [it for it in platform.requests if it.url.path == f"{MODEL}/traffic" and it.content]
    assert json.loads(switch.content) == {"traffic": {"chat@2": 100}, "generation": 7}


def test_traffic_shows_the_split(run: Run, platform: FakePlatform) -> None:
    platform.answer(f"GET {MODEL}/traffic", as_json(SPLIT))
    outcome = run("traffic", "chat")
    assert (outcome.code, outcome.out, outcome.err) == (0, SHOWN, "")


def test_traffic_sets_the_split_by_short_and_by_full_names(
    run: Run, platform: FakePlatform
) -> None:
    platform.answer(f"GET {MODEL}/traffic", as_json(WHOLE))
    platform.answer(f"PUT {MODEL}/traffic", as_json(SPLIT))
    platform.answer(f"GET {MODEL}/revisions", revisions({1: 0, 2: 0}))
    outcome = run("traffic", "chat", "1=90", "chat@2=10")
    assert (outcome.code, outcome.out) == (0, SHOWN)
    assert platform.asked() == {"traffic": {"chat@1": 90, "chat@2": 10}, "generation": 8}
    assert '"generation":7' in run("traffic", "chat", "1=90", "2=10", "--json").out.replace(" ", "")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (["1=90"], "the shares add up to 90 %, not to 100"),
        (["1=90", "2=20"], "the shares add up to 110 %, not to 100"),
        (["1"], "1 is not REVISION=PERCENT"),
        (["1=-10", "2=110"], "1=-10 is not REVISION=PERCENT"),
        (["1=ninety"], "1=ninety is not REVISION=PERCENT"),
        (["1=" + "9" * 5000], "is not REVISION=PERCENT"),
        (["=100"], "=100 is not REVISION=PERCENT"),
        (["1=50", "chat@1=50"], "chat@1 is there twice"),
    ],
)
def test_shares_that_cannot_be_are_not_sent(
    run: Run, platform: FakePlatform, shares: list[str], message: str
) -> None:
    outcome = run("traffic", "chat", *shares)
    assert outcome.code == 2 and message in outcome.err
    assert platform.requests == []


def test_a_rollback_goes_to_the_one_before_or_to_the_one_named(
    run: Run, platform: FakePlatform
) -> None:
    platform.answer(f"POST {MODEL}/rollback", as_json(WHOLE))
    assert run("rollback", "chat").out == "REVISION  TRAFFIC\nchat@1       100%\n"
    assert platform.asked() == {}
    run("rollback", "chat", "1")
    assert platform.asked() == {"revision": "chat@1"}


def test_what_the_platform_refuses_is_told(run: Run, platform: FakePlatform) -> None:
    platform.answer(
        f"POST {MODEL}/rollback",
        problem(Conflict("no other revision of chat has ever had all requests")),
        problem(RevisionNotFound("no revision chat@9 is kept", hint="`platform revisions chat`")),
    )
    first, second = run("rollback", "chat"), run("rollback", "chat", "9")
    assert (first.code, second.code) == (1, 1)
    assert first.err == "error: no other revision of chat has ever had all requests\n"
    assert second.err == "error: no revision chat@9 is kept\nhint: `platform revisions chat`\n"


def test_revisions_are_listed_with_their_share_and_where_a_rollback_goes(
    run: Run, platform: FakePlatform
) -> None:
    former = REVISION | {"revision": "chat@1", "percent": 0, "is_previous": True}
    platform.answer(f"GET {MODEL}/revisions", as_json({"data": [REVISION, former]}))
    lines = run("revisions", "chat").out.splitlines()
    assert lines[0].split() == [
        *("REVISION", "TRAFFIC", "REPLICAS", "RUNNING"),
        *("WAITING", "ENDED", "FAILED", "AGE", "ROLLBACK", "SOURCE"),
    ]
    assert lines[1].split()[:7] == ["chat@2", "10%", "1", "3", "0", "23", "1"]
    assert lines[2].split()[:2] == ["chat@1", "-"] and "goes here" in lines[2]
    assert "\x1b" not in lines[1]
    assert '"is_previous":true' in run("revisions", "chat", "--json").out.replace(" ", "")


def test_the_files_of_a_revision_are_listed_as_they_were_deployed(
    run: Run, platform: FakePlatform
) -> None:
    locked = {"path": "model.safetensors", "size": 269_060_552, "digest": "sha256:ab"}
    platform.answer(f"GET {MODEL}/revisions", as_json({"data": [REVISION | {"files": [locked]}]}))
    lines = run("revisions", "chat", "--files").out.splitlines()
    assert [line.split() for line in lines] == [
        ["REVISION", "BYTES", "FILE", "DIGEST"],
        ["chat@2", "269060552", "model.safetensors", "sha256:ab"],
    ]


def test_a_deployment_without_traffic_says_how_to_give_it_some(
    run: Run, platform: FakePlatform, tmp_path: Path
) -> None:
    spec = tmp_path / "model.yaml"
    spec.write_text("name: chat\nsource: ./smollm2\nscaling: {min: 1}\n")
    platform.answer(f"PUT {MODEL}", model_json(model(number=2, traffic={1: 100}, minimum=1), 202))
    outcome = run("deploy", str(spec), "--no-traffic")
    assert outcome.out == (
        "chat@2 is deployed and gets no request; they go to chat@1\n"
        "  try    platform traffic chat chat@1=90 chat@2=10\n"
        "  all    platform traffic chat chat@2=100\n"
    )
    assert len(platform.requests) == 1, "there is no replica to wait for"
    assert platform.requests[0].url.query == b"traffic=false"


def test_ls_names_every_revision_in_traffic(run: Run, platform: FakePlatform) -> None:
    platform.answer("GET /v1/models", listed(model(number=2, traffic={2: 90, 1: 10})))
    assert "chat@2 90%, chat@1 10%" in run("ls").out
