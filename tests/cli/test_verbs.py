import io
import json
from pathlib import Path

import httpx
import pytest

from infra.contracts.base import NodeId, ReplicaId
from infra.contracts.node import Leaving, NodeStatus
from infra.contracts.revision import ModelState
from infra.contracts.stage import Rung, Stage, StageProgress
from infra.errors import ModelNotFound, SourceInvalid, SpecInvalid
from tests.cli.conftest import FakeTime, Run
from tests.cli.fake_platform import (
    PARKED,
    FakePlatform,
    as_json,
    listed,
    model,
    model_json,
    problem,
    report,
    reports,
)
from worker.node.fake_gpus import a_gpu

MODEL = "/v1/models/chat"
SPEC = "name: chat\nsource: ./smollm2\n"

DEPLOYED = """\
chat@1 is deployed: LlamaForCausalLM, 269.1 MB of weights, 8,192 tokens of context
  state  idle
  url    http://platform.test/v1/models/chat/invoke
  try    platform invoke chat --prompt Hello --stream
  curl   curl http://platform.test/v1/models/chat/invoke -d '{"prompt": "Hello", "max_tokens": 32}'
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "model.yaml"
    file.write_text(SPEC)
    return file


def test_deploy_sends_the_spec_and_tells_how_to_call_the_model(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    platform.answer(f"PUT {MODEL}", model_json(model(), 202))

    outcome = run("deploy", str(spec))

    assert (outcome.code, outcome.out, outcome.err) == (0, DEPLOYED, "")
    assert platform.asked()["source"] == (spec.parent / "smollm2").as_uri()


def test_a_spec_can_be_piped_in(
    run: Run, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(SPEC.encode())))
    monkeypatch.chdir(tmp_path)
    platform.answer(f"PUT {MODEL}", model_json(model(), 202))

    outcome = run("deploy", "-")

    assert outcome.code == 0
    assert platform.asked()["source"] == (tmp_path / "smollm2").as_uri()


def test_the_curl_line_carries_the_key_by_name(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    platform.answer(f"PUT {MODEL}", model_json(model(), 202))

    outcome = run("deploy", str(spec), api_key="a-secret-of-mine")

    assert '-H "Authorization: Bearer $PLATFORM_API_KEY"' in outcome.out
    assert "a-secret-of-mine" not in outcome.out


def test_deploy_prints_the_models_status_as_json(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    platform.answer(f"PUT {MODEL}", model_json(model(), 202))

    outcome = run("deploy", str(spec), "--json")

    assert json.loads(outcome.out) == model().model_dump(mode="json")


def test_deploy_waits_for_replicas_that_are_always_kept(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    spec.write_text(SPEC + "scaling: {min: 1}\n")
    platform.answer(f"PUT {MODEL}", model_json(model(minimum=1), 202))
    platform.answer(
        f"GET {MODEL}",
        model_json(model(state=ModelState.STARTING)),
        model_json(model(state=ModelState.READY)),
    )

    waited = run("deploy", str(spec))
    at_once = run("deploy", str(spec), "--no-wait")

    assert "state  ready" in waited.out
    assert "state  idle" in at_once.out


def test_a_deploy_whose_replicas_cannot_start_fails(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    spec.write_text(SPEC + "scaling: {min: 1}\n")
    platform.answer(f"PUT {MODEL}", model_json(model(), 202))
    failing = model(state=ModelState.FAILING, reason="not enough memory")
    platform.answer(f"GET {MODEL}", model_json(failing))

    outcome = run("deploy", str(spec))

    assert outcome.code == 1
    assert outcome.err == (
        "error: chat cannot start: not enough memory\nhint: platform logs chat\n"
    )


def test_every_problem_of_a_spec_is_listed_with_its_place(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    spec.write_text("name: Chat\nsource: ./x\nscaling:\n  mni: 1\n")

    outcome = run("deploy", str(spec))

    assert outcome.code == 1
    assert outcome.err == (
        f"error: {spec} has 2 problems, the first on line 1: name: 'Chat' has 'C' (LATIN CAPITAL "
        "LETTER C) at position 1; lower-case letters a-z, digits and hyphens are accepted; did you "
        "mean chat?\n"
        f"  {spec}:1:1: name: 'Chat' has 'C' (LATIN CAPITAL LETTER C) at position 1; lower-case "
        "letters a-z, digits and hyphens are accepted; did you mean chat?\n"
        f"  {spec}:4:3: scaling.mni: is unknown; did you mean min?\n"
    )
    assert platform.requests == []


def test_problems_that_the_platform_finds_are_listed_too(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    errors = [
        {"line": None, "path": "name", "message": "is taken", "suggestion": "chat2"},
        {"pointer": "/scaling", "message": "is too much"},
        "nonsense",
    ]
    platform.answer(f"PUT {MODEL}", problem(SpecInvalid("it has problems", errors=errors)))

    outcome = run("deploy", str(spec))

    assert outcome.err == (
        "error: it has problems\n  name: is taken; did you mean chat2?\n  /scaling: is too much\n"
    )


def test_a_source_that_is_not_there_keeps_its_hint(
    run: Run, platform: FakePlatform, spec: Path
) -> None:
    error = SourceInvalid("x.gguf is not a folder", hint="platform models import x.gguf FOLDER")
    platform.answer(f"PUT {MODEL}", problem(error))

    outcome = run("deploy", str(spec))

    assert outcome.err == (
        "error: x.gguf is not a folder\nhint: platform models import x.gguf FOLDER\n"
    )


def test_a_file_that_cannot_be_read_is_said_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"name: \xff")

    missing = run("deploy", str(tmp_path / "none.yaml"))
    folder = run("deploy", str(tmp_path))
    binary = run("deploy", str(tmp_path / "binary.yaml"))

    assert missing.err == f"error: cannot read {tmp_path}/none.yaml: No such file or directory\n"
    assert folder.err == f"error: cannot read {tmp_path}: Is a directory\n"
    assert binary.err == f"error: {tmp_path}/binary.yaml is not UTF-8 at byte 6\n"
    assert {missing.code, folder.code, binary.code} == {1}


def test_ls_shows_one_line_a_model(run: Run, platform: FakePlatform) -> None:
    busy = model("writer", state=ModelState.READY, reason="1 request, target 8 [ok]")
    platform.answer("GET /v1/models", listed(busy, model()))

    outcome = run("ls")

    assert (
        outcome.out
        == """\
NAME    STATE  REVISION  REPLICAS  RUNNING  WAITING   AGE  REASON
chat    idle   chat@1         0/0        0        0  90 s  nobody calls
writer  ready  writer@1       1/1        0        0  90 s  1 request, target 8 [ok]
"""
    )


def test_ls_prints_json(run: Run, platform: FakePlatform) -> None:
    platform.answer("GET /v1/models", listed(model()))

    outcome = run("ls", "--json")

    assert json.loads(outcome.out) == [model().model_dump(mode="json")]


def test_ls_of_nothing_says_what_to_do(run: Run, platform: FakePlatform) -> None:
    platform.answer("GET /v1/models", listed())

    plain, as_json = run("ls"), run("ls", "--json")

    assert (plain.out, plain.err) == ("", "nothing is deployed: platform deploy model.yaml\n")
    assert as_json.out == "[]\n"


def test_nodes_shows_machines_and_who_has_their_gpus(run: Run, platform: FakePlatform) -> None:
    gpus = [
        a_gpu(0).model_copy(update={"replica_id": "chat-1-a", "used_bytes": 20 * 10**9}),
        a_gpu(1).model_copy(update={"sleeper": "writer@1"}),
        a_gpu(2, "h100", 80 * 10**9).model_copy(update={"trouble": "XID 79"}),
        a_gpu(3, "h100", 80 * 10**9),
    ]
    node = NodeStatus(
        node_id=NodeId("local"),
        cpus=8,
        memory_bytes=64 * 10**9,
        gpus=tuple(gpus),
        started_at=1_700_000_000,
        runtime="container",
        standby=2,
        standby_ready=1,
        sleepers=(),
        replicas=(ReplicaId("chat-1-a"),),
    )
    answer = {"object": "list", "data": [node.model_dump(mode="json")]}
    platform.answer("GET /v1/nodes", as_json(answer))

    assert (
        run("nodes").out
        == """\
NODE   STATE  RUNS        CPUS   MEMORY  GPUS  PARKED  ASLEEP  REPLICAS   AGE
local  ready  containers     8  64.0 GB     4     1/2       0         1  90 s

NODE   GPU    CLASS   MEMORY     USED  DRIVER  HOLDER
local  GPU-0  l4     25.8 GB  20.0 GB  570.0   chat-1-a
local  GPU-1  l4     25.8 GB      0 B  570.0   writer@1 sleeps
local  GPU-2  h100   80.0 GB      0 B  570.0   XID 79
local  GPU-3  h100   80.0 GB      0 B  570.0   -
"""
    )
    assert json.loads(run("nodes", "--json").out) == answer["data"]


def test_nodes_that_will_be_taken_away_are_shown_with_why_and_when(
    run: Run, platform: FakePlatform
) -> None:
    stays = NodeStatus(
        node_id=NodeId("i-0"),
        cpus=8,
        memory_bytes=64 * 10**9,
        gpus=(),
        started_at=1_700_000_000,
        standby=0,
        standby_ready=0,
        sleepers=(),
        replicas=(),
    )
    notices = (
        Leaving(reason="its spot instance is interrupted", at=1_700_000_185),
        Leaving(reason="its group lets it go"),
        Leaving(reason="its spot instance is interrupted", at=1_700_000_085),
    )
    leaving = [
        stays.model_copy(update={"node_id": f"i-{number}", "leaving": notice})
        for number, notice in enumerate(notices, 1)
    ]
    data = [node.model_dump(mode="json") for node in (stays, *leaving)]
    platform.answer("GET /v1/nodes", as_json({"object": "list", "data": data}))

    assert (
        run("nodes").out
        == """\
NODE  STATE    RUNS       CPUS   MEMORY  GPUS  PARKED  ASLEEP  REPLICAS   AGE
i-0   ready    processes     8  64.0 GB     0     0/0       0         0  90 s
i-1   leaving  processes     8  64.0 GB     0     0/0       0         0  90 s
i-2   leaving  processes     8  64.0 GB     0     0/0       0         0  90 s
i-3   leaving  processes     8  64.0 GB     0     0/0       0         0  90 s

i-1 leaves in 95 s: its spot instance is interrupted
i-2 leaves, not known when: its group lets it go
i-3 was to leave 5.0 s ago: its spot instance is interrupted
"""
    )


def test_nodes_where_there_are_none(run: Run, platform: FakePlatform) -> None:
    platform.answer("GET /v1/nodes", as_json({"object": "list", "data": []}))
    assert run("nodes").err == "no node is registered\n"


LOG = (
    '{"at": 1700000000.0625, "source": "chat-1-a", "text": "ready \\u001b[31mred"}\n'
    "\n"
    "no json at all\n"
)


def test_logs_are_readable_and_free_of_control_codes(run: Run, platform: FakePlatform) -> None:
    platform.answer(f"GET {MODEL}/logs", httpx.Response(200, text=LOG))

    outcome = run("logs", "chat", "-f")

    first, second = outcome.out.splitlines()
    assert first.endswith(":20.062 chat-1-a  ready [31mred")
    assert second == "no json at all"
    assert platform.requests[-1].url.params["follow"] == "true"


def test_logs_as_json_are_as_they_came(run: Run, platform: FakePlatform) -> None:
    platform.answer(f"GET {MODEL}/logs", httpx.Response(200, text=LOG))

    outcome = run("logs", "chat", "--json")

    assert outcome.out == LOG.replace("\n\n", "\n")
    assert "follow" not in platform.requests[-1].url.params


SPAWNED = tuple(
    (stage, 1.012 if stage is Stage.RUNTIME else seconds, size, source)
    for stage, seconds, size, source in PARKED
)
BEFORE = report(SPAWNED, rung=Rung.NODE, started_at=1_700_000_000, request_id="req_1")
AFTER = report(started_at=1_700_000_042, request_id="req_2")

COMPARISON = """\
cold starts of chat: 1,171.4 ms, then 171.4 ms, 6.8 times faster
                    ms HH:MM:20 from node            ms HH:MM:02 from runtime        change
  queue            1.2 ▏                      ▌     1.2 ▏▎                              0.0
  provision        3.1 ▏                            3.1 ▏                               0.0
  runtime      1,012.0 ██████████████████████▌     12.0 ▍                          -1,000.0
  weights          7.9                       ▊      7.9 ▌                               0.0
  engine          34.7                       █▌    34.7 █▎                              0.0
  prefill        112.2                        ███ 112.2  ██▊                            0.0
  unattributed     0.3                              0.3                                 0.0
  total        1,171.4                            171.4                            -1,000.0
"""


def test_two_cold_starts_are_compared_side_by_side(run: Run, platform: FakePlatform) -> None:
    platform.answer(f"GET {MODEL}/coldstarts", reports(AFTER, BEFORE))

    outcome = run("coldstarts", "chat", "--last", "2", "--compare")

    heading = outcome.out.splitlines()[1]
    clocks = [heading[23:28], heading[heading.index("ms", 24) + 3 :][:5]]
    shown = outcome.out
    for clock in clocks:  # the time of day depends on where the test runs
        shown = shown.replace(clock, "HH:MM")
    assert shown == COMPARISON


def test_cold_starts_are_drawn_oldest_first(run: Run, platform: FakePlatform) -> None:
    platform.answer(f"GET {MODEL}/coldstarts", reports(AFTER, BEFORE))

    outcome = run("coldstarts", "chat", "--last", "2")

    assert outcome.out.index("request req_1") < outcome.out.index("request req_2")
    assert platform.requests[-1].url.params["last"] == "2"


def test_cold_starts_as_json_add_up(run: Run, platform: FakePlatform) -> None:
    platform.answer(f"GET {MODEL}/coldstarts", reports(AFTER))

    outcome = run("coldstarts", "chat", "--json", "--request", "req_2")

    [found] = json.loads(outcome.out)
    explained = sum(share["seconds"] for share in found["shares"])
    assert explained + found["unattributed_s"] == pytest.approx(found["ttft_s"])
    assert platform.requests[-1].url.params["request_id"] == "req_2"


def test_too_few_cold_starts_fail_with_a_hint(run: Run, platform: FakePlatform) -> None:
    platform.answer(f"GET {MODEL}/coldstarts", reports(), reports(AFTER))

    none, one = run("coldstarts", "chat"), run("coldstarts", "chat", "--compare")

    assert none.err == (
        "error: no cold start of chat is on record\n"
        "hint: a model that is idle starts cold: platform invoke chat --prompt Hello\n"
    )
    assert one.err == (
        "error: there is one cold start on record, two are compared\n"
        "hint: let the model go idle and call it again\n"
    )
    assert (none.code, one.code) == (1, 1)


def test_wait_ends_when_the_model_is_there(run: Run, platform: FakePlatform) -> None:
    platform.answer(
        f"GET {MODEL}",
        model_json(model(state=ModelState.READY)),
        model_json(model(state=ModelState.DRAINING)),
        model_json(model()),
    )

    outcome = run("wait", "chat", "--for", "idle")

    assert (outcome.code, outcome.out, outcome.err) == (0, "", "chat is idle\n")
    assert len(platform.requests) == 3


def test_wait_prints_the_status_as_json(run: Run, platform: FakePlatform) -> None:
    platform.answer(f"GET {MODEL}", model_json(model()))

    outcome = run("wait", "chat", "--for", "idle", "--json")

    assert json.loads(outcome.out)["state"] == "idle"


@pytest.mark.parametrize(
    ("state", "status", "expected"),
    [
        (
            "ready",
            model(),
            "error: chat is still idle after 5.0 s: nobody calls\n"
            "hint: a model at zero wakes when it is called: platform invoke chat --prompt Hello\n",
        ),
        (
            "idle",
            model(
                state=ModelState.STARTING,
                progress=StageProgress(stage=Stage.WEIGHTS, fraction=0.4),
                reason="a request waits",
            ),
            "error: chat is still starting after 5.0 s: a request waits\n"
            "hint: platform ls shows what keeps chat awake\n",
        ),
        (
            "ready",
            model(state=ModelState.FAILING, reason="no memory"),
            "error: chat cannot start: no memory\nhint: platform logs chat\n",
        ),
        (
            "ready",
            model(state=ModelState.FAILING, reason="no registry", hint="start the registry"),
            "error: chat cannot start: no registry\nhint: start the registry\n",
        ),
    ],
)
def test_a_wait_that_leads_nowhere_fails(
    run: Run, platform: FakePlatform, state: str, status: object, expected: str
) -> None:
    platform.answer(f"GET {MODEL}", model_json(status))  # type: ignore[arg-type]

    outcome = run("wait", "chat", "--for", state, "--timeout", "5")

    assert (outcome.code, outcome.err) == (1, expected)


def test_delete_takes_the_model_away(run: Run, platform: FakePlatform) -> None:
    platform.answer(
        f"DELETE {MODEL}",
        httpx.Response(204),
        problem(ModelNotFound("no model 'chat' is deployed", hint="`platform ls` shows")),
    )

    first, again = run("delete", "chat"), run("delete", "chat")

    assert (first.code, first.err) == (0, "chat is deleted\n")
    assert (again.code, again.err) == (
        1,
        "error: no model 'chat' is deployed\nhint: `platform ls` shows\n",
    )


def test_a_name_cannot_lead_to_another_address(run: Run, platform: FakePlatform) -> None:
    run("delete", "../nodes?x=1#y")

    assert platform.requests[-1].url.raw_path == b"/v1/models/..%2Fnodes%3Fx%3D1%23y"


def test_time_passes_while_waiting(run: Run, platform: FakePlatform, fake_time: FakeTime) -> None:
    platform.answer(f"GET {MODEL}", *[model_json(model(state=ModelState.READY))] * 3)

    run("wait", "chat", "--for", "idle", "--timeout", "1")

    assert fake_time.seconds == pytest.approx(1.0, abs=0.15)
