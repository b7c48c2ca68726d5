import io
import json

import httpx
import pytest

from infra.errors import ColdStartTimeout, ModelNotFound, QueueFull, ReplicaLost
from tests.cli.conftest import FakeTime, Run
from tests.cli.fake_platform import (
    REQUEST_ID,
    FakePlatform,
    as_json,
    closing,
    delta,
    problem,
    report,
    reports,
    sse,
)

INVOKE = "POST /v1/models/chat/invoke"
COLD_STARTS = "GET /v1/models/chat/coldstarts"
ANSWER = {
    "id": "inv-1",
    "model": "chat",
    "output": "Paris.",
    "outputs": [{"text": "Paris.", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
}

WATERFALL = """\

cold start of chat@1 from rung runtime, request req_0123456789abcdef01234567
  queue          0.4 ms ▏                                                       activator
  provision      3.1 ms █
  runtime       12.0 ms ████▏                                                   parked
  weights        7.9 ms     ██▎                                        269.1 MB mmap
  engine        34.7 ms       █████████▋
  queue          0.8 ms                ▊                                        activator
  prefill      112.2 ms                ██████████████████████████████▉
  unattributed   0.3 ms
  total        171.4 ms to the first token
"""


def test_a_warm_answer_is_printed_when_it_is_whole(run: Run, platform: FakePlatform) -> None:
    platform.answer(INVOKE, sse(delta("Pa"), delta("ris."), closing()))

    outcome = run("invoke", "chat", "--prompt", "Capital of France?")

    assert (outcome.code, outcome.out) == (0, "Paris.\n")
    assert platform.asked() == {
        "messages": [{"role": "user", "content": "Capital of France?"}],
        "stream": True,
    }
    assert platform.requests[-1].headers["Firstlight-Progress"] == "true"


def test_speed_is_told_beside_the_answer(
    run: Run, platform: FakePlatform, fake_time: FakeTime
) -> None:
    fake_time.step_s = 0.1
    platform.answer(INVOKE, sse(delta("a"), delta("b"), closing(tokens=3)))

    outcome = run("invoke", "chat", "--prompt", "x", "--stream")

    assert outcome.err == "3 tokens in 0.4 s, the first after 300.0 ms, 20.0 tokens/s\n"


def test_tokens_are_printed_as_they_come(run: Run, platform: FakePlatform) -> None:
    platform.answer(INVOKE, sse(delta("Pa"), delta("ris.\n"), closing()))

    outcome = run("invoke", "chat", "--prompt", "x", "--stream")

    assert outcome.out == "Paris.\n\n"


@pytest.mark.parametrize("told", ["by a header", "by a comment"])
def test_a_cold_answer_is_followed_by_its_waterfall(
    run: Run, platform: FakePlatform, told: str
) -> None:
    stream = [": stage queue 0%", ": stage weights 40%", ": server-timing queue;dur=0.4"]
    if told == "by a header":
        answer = sse(delta("Hi"), closing(), headers={"Firstlight-Cold-Start": "true"})
    else:
        answer = sse(*stream, delta("Hi"), closing())
    platform.answer(INVOKE, answer)
    platform.answer(COLD_STARTS, reports(report()))

    outcome = run("invoke", "chat", "--prompt", "x")

    assert outcome.out == "Hi\n"
    assert outcome.err.partition("\n")[2] == WATERFALL
    assert platform.requests[-1].url.params["request_id"] == REQUEST_ID


def test_a_wait_shows_the_stage_and_the_time_on_a_terminal(
    run: Run, platform: FakePlatform, fake_time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control_plane.cli.waiting.Waiting.stop", lambda waiting: None)
    monkeypatch.setattr(
        "control_plane.cli.waiting.Waiting.show",
        lambda waiting, step: (setattr(waiting, "_step", step), waiting._live.refresh()),
    )
    fake_time.seconds = 0.0
    platform.answer(INVOKE, sse(": stage weights 40%", delta("Hi"), closing()))

    outcome = run("invoke", "chat", "--prompt", "x", force_terminal=True)

    assert "waking chat  weights 40%  0 ms" in outcome.err


def test_a_report_that_is_missing_is_no_failure(run: Run, platform: FakePlatform) -> None:
    platform.answer(INVOKE, sse(": server-timing total;dur=1", delta("Hi"), closing()))
    platform.answer(COLD_STARTS, problem(ModelNotFound("no model 'chat' is deployed")))

    outcome = run("invoke", "chat", "--prompt", "x")

    assert outcome.code == 0
    assert "the cold start's report is not to be had: no model 'chat'" in outcome.err


def test_json_is_the_platforms_own_answer(run: Run, platform: FakePlatform) -> None:
    platform.answer(INVOKE, as_json(ANSWER))

    outcome = run("invoke", "chat", "--prompt", "x", "--json")

    assert json.loads(outcome.out) == ANSWER
    assert outcome.err == ""
    assert "stream" not in platform.asked()


def test_a_cold_answer_as_json_leaves_its_waterfall_beside_it(
    run: Run, platform: FakePlatform
) -> None:
    cold = {"Firstlight-Cold-Start": "true", "Firstlight-Request-Id": REQUEST_ID}
    platform.answer(INVOKE, httpx.Response(200, json=ANSWER, headers=cold))
    platform.answer(COLD_STARTS, reports(report()))

    outcome = run("invoke", "chat", "--prompt", "x", "--json")

    assert (json.loads(outcome.out), outcome.err) == (ANSWER, WATERFALL)


def test_json_of_a_stream_is_one_event_a_line(run: Run, platform: FakePlatform) -> None:
    platform.answer(INVOKE, sse(": stage queue 0%", delta("Hi"), closing()))

    outcome = run("invoke", "chat", "--prompt", "x", "--stream", "--json")

    lines = [json.loads(line) for line in outcome.out.splitlines()]
    assert [line["delta"] for line in lines] == ["Hi", ""]
    assert outcome.err == ""


def test_every_flag_reaches_the_model(run: Run, platform: FakePlatform) -> None:
    platform.answer(INVOKE, sse(delta("Hi"), closing()))

    run(
        *("invoke", "chat", "--prompt", "x", "--system", "Be brief", "--max-tokens", "8"),
        *("--temperature", "0", "--top-p", "0.9", "--seed", "7", "--stop", "a", "--stop", "b"),
    )

    assert platform.asked() == {
        "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "x"},
        ],
        "max_tokens": 8,
        "temperature": 0.0,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["a", "b"],
        "stream": True,
    }


def test_a_raw_prompt_is_sent_as_it_is(run: Run, platform: FakePlatform) -> None:
    platform.answer(INVOKE, sse(delta("Hi"), closing()))

    run("invoke", "chat", "--prompt", "Once upon", "--raw")

    assert platform.asked() == {"prompt": "Once upon", "stream": True}


@pytest.mark.parametrize("arguments", [(), ("--prompt", "-")])
def test_a_prompt_can_be_piped_in(
    run: Run, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("größer".encode())))
    platform.answer(INVOKE, sse(delta("Hi"), closing()))

    run("invoke", "chat", *arguments)

    assert platform.asked()["messages"][0]["content"] == "größer"


def test_what_is_piped_in_must_be_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))

    outcome = run("invoke", "chat")

    assert (outcome.code, outcome.err) == (1, "error: standard input is not UTF-8 at byte 2\n")


def test_no_prompt_on_a_terminal_is_said_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control_plane.cli.invoke.is_interactive", lambda: True)

    outcome = run("invoke", "chat")

    assert outcome.code == 1
    assert outcome.err == "error: there is no prompt\nhint: give one with --prompt, or pipe it in\n"


def test_a_terminal_is_spared_control_codes_and_a_file_gets_the_text(
    run: Run, platform: FakePlatform
) -> None:
    platform.answer(INVOKE, sse(delta("a\x1b[31mb\x07\n\tc\x9b"), closing()))

    terminal = run("invoke", "chat", "--prompt", "x", "--stream", force_terminal=True)
    file = run("invoke", "chat", "--prompt", "x", "--stream")

    assert terminal.out == "a[31mb\n\tc\n"
    assert file.out == "a\x1b[31mb\x07\n\tc\x9b\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            QueueFull("chat holds 1000 requests", hint="try again later", retry_after_s=2),
            "error: chat holds 1000 requests\nhint: try again later\n",
        ),
        (
            ModelNotFound("no model 'chat' is deployed", hint="did you mean chat2?"),
            "error: no model 'chat' is deployed\nhint: did you mean chat2?\n",
        ),
        (ColdStartTimeout("no replica within 300 s"), "error: no replica within 300 s\n"),
    ],
)
def test_a_refusal_is_told_in_its_own_words(
    run: Run, platform: FakePlatform, error: QueueFull, expected: str
) -> None:
    platform.answer(INVOKE, problem(error))

    outcome = run("invoke", "chat", "--prompt", "x")

    assert (outcome.code, outcome.out, outcome.err) == (1, "", expected)


@pytest.mark.parametrize("body", ["problem", "error member alone"])
def test_an_error_in_the_stream_fails_after_what_was_printed(
    run: Run, platform: FakePlatform, body: str
) -> None:
    content = ReplicaLost("the replica died").problem().model_dump(mode="json")
    data = content if body == "problem" else {"error": content["error"]}
    platform.answer(INVOKE, sse(delta("Hal"), f"event: error\ndata: {json.dumps(data)}"))

    outcome = run("invoke", "chat", "--prompt", "x", "--stream")

    assert (outcome.code, outcome.out) == (1, "Hal\n")
    assert outcome.err == "error: the replica died\n"


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((), "error: the answer ended before it was complete\n"),
        ((delta("Hal"),), "error: the answer ended before it was complete\n"),
        (("data: {",), "error: the platform's answer cannot be read\n"),
        (('data: {"delta": 5}',), "error: the platform's answer cannot be read\n"),
        (("event: error\ndata: [",), "error: the answer ended with an error that cannot be read\n"),
        (
            ("event: error\ndata: {}",),
            "error: the answer ended with an error that cannot be read\n",
        ),
    ],
)
def test_a_stream_that_is_not_right_fails(
    run: Run, platform: FakePlatform, events: tuple[str, ...], expected: str
) -> None:
    platform.answer(INVOKE, sse(*events))

    outcome = run("invoke", "chat", "--prompt", "x")

    assert outcome.code == 1
    assert outcome.err.startswith(expected)


def test_a_raw_prompt_has_no_system_message(run: Run) -> None:
    outcome = run("invoke", "chat", "--prompt", "x", "--raw", "--system", "y")

    assert outcome.code == 2
    assert outcome.err == (
        "error: invalid value for --system: a raw prompt has no system message\n"
        "hint: platform invoke --help\n"
    )
