"""The open inference protocol over the whole control plane, at zero replicas."""

import asyncio
import struct
from typing import Any

import orjson

from control_plane.activator.memory_client import Script, Wire
from control_plane.activator.replica_client import ReplicaRequest
from control_plane.capacity.simulated.script import Script as Climb
from infra.errors import ContextLengthExceeded
from infra.virtual_time import run_virtual
from tests.api.test_tenants import ROOT, Headers, deploy, with_keys
from tests.api.world import EdgeWorld, scenario
from tests.fleet.world import CRASH, World

INFER = "/v2/models/chat/infer"
PROMPTS = {"name": "text_input", "shape": [2], "datatype": "BYTES", "data": ["a", "bc"]}
LENGTH = "inference-header-content-length"


def asks(**changes: Any) -> dict[str, Any]:
    return {"inputs": [PROMPTS], **changes}


def completes(request: ReplicaRequest) -> list[dict[str, Any]]:
    prompts = orjson.loads(request.body)["prompt"]
    return [
        {"index": index, "text": f"<{prompt}>", "logprobs": None, "finish_reason": "length"}
        for index, prompt in enumerate(prompts)
    ]


async def whole(request: ReplicaRequest, wire: Wire) -> None:
    wire.head(200, [(b"content-type", b"application/json")])
    choices = list(reversed(completes(request)))
    await wire.write(orjson.dumps({"id": "cmpl-1", "choices": choices}))


async def events(request: ReplicaRequest, wire: Wire) -> None:
    wire.head(200, [(b"content-type", b"text/event-stream")])
    [choice] = completes(request)
    for text, reason in (("data: ", None), ("y", None), ("", "stop")):
        told = {"choices": [choice | {"text": text, "finish_reason": reason}]}
        await wire.write(b"data: %b\n\n" % orjson.dumps(told))
    await wire.write(b"data: [DONE]\n\n")


def refuses(status: int) -> Script:
    async def script(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(status, [(b"content-type", b"application/problem+json")])
        problem = ContextLengthExceeded("too long", hint="shorten it").problem()
        await wire.write(problem.model_dump_json().encode())

    return script


def texts(body: dict[str, Any]) -> dict[str, list[str]]:
    return {it["name"]: it["data"] for it in body["outputs"]}


def sent(edge: EdgeWorld) -> dict[str, Any]:
    [one] = edge.replicas.sent
    assert one.request.path == "/v1/completions"
    content: dict[str, Any] = orjson.loads(one.request.body)
    return content


# -- infer -----------------------------------------------------------------------------------------


@scenario
async def test_a_tensor_of_prompts_wakes_a_model_at_zero_and_gets_a_tensor_of_texts(
    edge: EdgeWorld,
) -> None:
    edge.script = whole

    answer = await edge.call("POST", INFER, asks(id="42", parameters={"temperature": 0}))

    assert answer.json() == {
        "model_name": "chat",
        "model_version": "1",
        "id": "42",
        "outputs": [
            {"name": "text_output", "shape": [2], "datatype": "BYTES", "data": ["<a>", "<bc>"]},
            {
                "name": "finish_reason",
                "shape": [2],
                "datatype": "BYTES",
                "data": ["length", "length"],
            },
        ],
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["firstlight-cold-start"] == "true"
    assert answer.headers["firstlight-revision"] == "chat@1"
    assert sent(edge) == {"model": "chat", "prompt": ["a", "bc"], "temperature": 0}


@scenario
async def test_tensors_may_be_bytes_behind_the_json_in_both_directions(edge: EdgeWorld) -> None:
    edge.script = whole
    packed = b"".join(struct.pack("<I", len(it)) + it for it in (b"a", "é".encode()))
    inputs = [
        {
            "name": "text_input",
            "shape": [2, 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(packed)},
        },
        {
            "name": "max_tokens",
            "shape": [1],
            "datatype": "INT32",
            "parameters": {"binary_data_size": 4},
        },
    ]
    written = orjson.dumps(
        {
            "inputs": inputs,
            "outputs": [{"name": "text_output", "parameters": {"binary_data": True}}],
        }
    )
    body = written + packed + struct.pack("<i", 7)

    answer = await edge.call("POST", INFER, body, headers={LENGTH: str(len(written))})

    assert sent(edge) == {"model": "chat", "prompt": ["a", "é"], "max_tokens": 7}
    length = int(answer.headers[LENGTH])
    content = b"".join(answer.parts)
    [output] = orjson.loads(content[:length])["outputs"]
    assert output["shape"] == [2, 1]
    assert output["parameters"] == {"binary_data_size": len(content) - length}
    assert content[length:] == b"".join(
        struct.pack("<I", len(it)) + it for it in (b"<a>", "<é>".encode())
    )


SAID: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": 3, "unknown": 1}, {"max_tokens": 3}),
    ({"max_new_tokens": 3, "random_seed": 1}, {"max_tokens": 3, "seed": 1}),
    ({"sampling_parameters": '{"top_k": 5, "stop": ["x"]}'}, {"top_k": 5, "stop": ["x"]}),
    ({"sampling_parameters": '{"top_k": 5}', "top_k": 6}, {"top_k": 6}),
    ({"exclude_input_in_output": True, "stream": False}, {}),
    ({"exclude_input_in_output": False}, {"echo": True}),
    ({"n": 1, "logprobs": None, "model": "other", "prompt": "x"}, {}),
]


@scenario
async def test_parameters_are_those_of_completions_under_the_names_that_clients_know(
    edge: EdgeWorld,
) -> None:
    edge.script = whole
    for parameters, completion in SAID:
        assert (await edge.call("POST", INFER, asks(parameters=parameters))).status == 200

        content = orjson.loads(edge.replicas.sent[-1].request.body)
        assert content == {"model": "chat", "prompt": ["a", "bc"], **completion}


@scenario
async def test_the_names_of_kserves_own_runtime_are_understood(edge: EdgeWorld) -> None:
    edge.script = whole
    stops = {"name": "stop", "shape": [1], "datatype": "BYTES", "data": ["end"]}
    prompts = PROMPTS | {"name": "input-0", "shape": [2, 1], "data": [["a"], ["b"]]}

    answer = await edge.call(
        "POST", INFER, {"inputs": [prompts, stops], "outputs": [{"name": "output-0"}]}
    )

    assert texts(answer.json()) == {"output-0": ["<a>", "<b>"]}
    assert sent(edge)["stop"] == ["end"]


def with_prompts(**changes: Any) -> bytes:
    return orjson.dumps({"inputs": [PROMPTS | changes]})


WRONG: list[tuple[bytes, str | None]] = [
    (b"{", None),
    (b"[]", None),
    (b"{}", "inputs"),
    (with_prompts(name="image"), "inputs[0].name"),
    (with_prompts(shape=[3]), "inputs[0].data"),
    (with_prompts(shape=[1 << 20, 1 << 20]), "inputs[0].shape"),
    (with_prompts(shape=[0]), "inputs[0].shape"),
    (with_prompts(shape=[-1]), "inputs[0].shape[0]"),
    (with_prompts(datatype="INT32"), "inputs[0].datatype"),
    (with_prompts(datatype="BF16"), "inputs[0].datatype"),
    (with_prompts(data=[1, 2]), "inputs[0].data"),
    (with_prompts(data=[["a"], "b"]), "inputs[0].data"),
    (with_prompts(shape=[1025], data=["a"] * 1025), "inputs[0].shape"),
    (with_prompts(shape=[65], data=["a"] * 65), "prompt"),
    (with_prompts(data=None), "inputs[0].data"),
    (
        with_prompts(data=None, parameters={"binary_data_size": 9}),
        "inputs[0].parameters.binary_data_size",
    ),
    (with_prompts(parameters={"binary_data_size": 0}), "inputs[0].data"),
    (orjson.dumps({"inputs": [PROMPTS, PROMPTS]}), "inputs[1].name"),
    (orjson.dumps(asks(outputs=[{"name": "logits"}])), "outputs[0].name"),
    (orjson.dumps(asks(parameters={"temperature": -1})), "temperature"),
    (orjson.dumps(asks(parameters={"temperature": "hot"})), "temperature"),
    (orjson.dumps(asks(parameters={"n": 2})), "n"),
    (orjson.dumps(asks(parameters={"logprobs": 1})), "logprobs"),
    (orjson.dumps(asks(parameters={"stream": True})), "stream"),
    (orjson.dumps(asks(parameters={"sampling_parameters": 1})), "sampling_parameters"),
    (orjson.dumps(asks(parameters={"max_tokens": 4096})), "max_tokens"),
    (b'{"inputs": %b}' % (b"[" * 1000 + b"]" * 1000), "inputs[0]"),
    (
        b'{"inputs": [%b], "parameters": {"structured_outputs": {"json": %b1%b}}}'
        % (orjson.dumps(PROMPTS), b'{"a":' * 900, b"}" * 900),
        "parameters",
    ),
]


@scenario
async def test_what_is_wrong_is_told_as_the_protocol_has_it_and_wakes_nothing(
    edge: EdgeWorld,
) -> None:
    for body, param in WRONG:
        answer = await edge.call("POST", INFER, body)

        told = answer.json()
        assert answer.status == 400, body[:200]
        assert answer.headers["content-type"] == "application/json"
        assert isinstance(told["error"], str) and told["detail"] in told["error"]
        assert told.get("param") == param
    assert edge.is_asleep()


@scenario
async def test_bytes_behind_the_json_that_do_not_hold_what_was_said_are_refused(
    edge: EdgeWorld,
) -> None:
    written = orjson.dumps(asks())
    for length, behind in (("x", b""), ("99999", b""), ("0", b""), (None, b"left over")):
        headers = {} if length is None else {LENGTH: length}
        assert (await edge.call("POST", INFER, written + behind, headers=headers)).status == 400
    headers = {LENGTH: str(len(written))}
    assert (await edge.call("POST", INFER, written + b"left", headers=headers)).status == 400
    for data in NO_TEXTS:
        tensor = PROMPTS | {"shape": [1], "parameters": {"binary_data_size": len(data)}}
        del tensor["data"]
        json = orjson.dumps({"inputs": [tensor]})
        answer = await edge.call("POST", INFER, json + data, headers={LENGTH: str(len(json))})
        assert answer.status == 400, data[:20]
    assert edge.is_asleep()


NO_TEXTS = [
    struct.pack("<I", 5) + b"ab",
    b"\x01\x00",
    struct.pack("<I", 1) + b"\xff",
    b"\0" * 4096,
    struct.pack("<I", 0xFFFFFFFF),
]


@scenario
async def test_what_a_replica_refuses_is_told_in_the_protocols_words(edge: EdgeWorld) -> None:
    edge.script = refuses(400)

    answer = await edge.call("POST", INFER, asks())
    event = await edge.call("POST", "/v2/models/chat/generate_stream", {"text_input": "a"})

    for one in (answer, event):
        assert one.status == 400
        assert one.json()["error"] == "too long (shorten it)"
        assert one.json()["type"] == "/problems/context-length-exceeded"


@scenario
async def test_an_answer_that_is_no_completion_is_a_lost_replica(edge: EdgeWorld) -> None:
    answer = await edge.call("POST", INFER, asks())

    assert answer.status == 502
    assert "no completion" in answer.json()["error"]


@scenario
async def test_a_large_answer_whose_replica_dies_is_a_problem_not_half_an_answer(
    edge: EdgeWorld,
) -> None:
    async def half(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200, [(b"content-type", b"application/json")])
        await wire.write(b'{"choices": [' + b" " * (2 << 20))
        wire.break_off()

    edge.script = half

    answer = await edge.call("POST", INFER, asks())

    assert (answer.status, answer.json()["type"]) == (502, "/problems/replica-lost")


@scenario
async def test_a_client_that_leaves_while_held_is_forgotten(edge: EdgeWorld) -> None:
    exchange = edge.start("POST", INFER, orjson.dumps(asks()))
    await edge.settled()

    await exchange.leave()

    await asyncio.sleep(5)
    assert edge.replicas.sent == []


@scenario
async def test_a_tensor_takes_a_permit_for_each_prompt(edge: EdgeWorld) -> None:
    await edge.world.deploy("chat", scaling={"max": 1}, limits={"max_concurrency": 4})

    async def slow(request: ReplicaRequest, wire: Wire) -> None:
        await asyncio.sleep(5)
        await whole(request, wire)

    edge.script = slow
    exchange = edge.start("POST", INFER, orjson.dumps(asks()))
    await edge.world.until(lambda: edge.replicas.running)

    [replica] = edge.world.fleet.replicas()
    assert edge.lines.in_flight(replica) == 2
    await exchange.done()


@scenario
async def test_it_is_answered_at_once_also_where_a_job_would_do(edge: EdgeWorld) -> None:
    edge.script = whole

    answer = await edge.call("POST", INFER, asks(), headers={"prefer": "respond-async"})

    assert (answer.status, answer.headers.get("preference-applied")) == (200, None)


# -- generate --------------------------------------------------------------------------------------


@scenario
async def test_generate_gives_a_text_for_a_text(edge: EdgeWorld) -> None:
    edge.script = whole

    answer = await edge.call(
        "POST",
        "/v2/models/chat/generate",
        {"text_input": "a", "parameters": {"max_tokens": 3, "stream": False}},
    )

    assert answer.json() == {
        "model_name": "chat",
        "model_version": "1",
        "text_output": "<a>",
        "finish_reason": "length",
    }
    assert sent(edge) == {"model": "chat", "prompt": ["a"], "max_tokens": 3}


@scenario
async def test_generate_stream_gives_an_event_for_each_token(edge: EdgeWorld) -> None:
    edge.script = events

    answer = await edge.call(
        "POST",
        "/v2/models/chat/generate_stream",
        {"text_input": "a", "id": "7"},
        headers={"firstlight-progress": "true"},
    )

    lines = answer.text.split("\n\n")
    told = [orjson.loads(it.removeprefix("data: ")) for it in lines if it.startswith("data: ")]
    envelope = {"model_name": "chat", "model_version": "1", "id": "7"}
    assert told == [
        envelope | {"text_output": "data: "},
        envelope | {"text_output": "y"},
        envelope | {"text_output": "", "finish_reason": "stop"},
    ]
    assert any(it.startswith(": stage") for it in lines), "a held stream tells its progress"
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert sent(edge)["stream"] is True


@scenario
async def test_a_stream_that_breaks_off_ends_with_an_error_in_words(edge: EdgeWorld) -> None:
    async def half(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200, [(b"content-type", b"text/event-stream")])
        await wire.write(b'data: {"choices":[{"text":"x","finish_reason":null}]}\n\ndata: {')
        await asyncio.sleep(1)
        wire.break_off()

    edge.script = half

    answer = await edge.call("POST", "/v2/models/chat/generate_stream", {"text_input": "a"})

    first, last = answer.text.strip().split("\n\n")
    assert orjson.loads(first.removeprefix("data: "))["text_output"] == "x"
    assert last.startswith("event: error\ndata: ")
    assert "broke off" in orjson.loads(last.split("data: ", 1)[1])["error"]


@scenario
async def test_an_error_that_the_replica_streams_is_in_words_too(edge: EdgeWorld) -> None:
    async def fails(request: ReplicaRequest, wire: Wire) -> None:
        wire.head(200, [(b"content-type", b"text/event-stream")])
        await wire.write(b'event: error\ndata: {"status":500,"error":{"message":"broken"}}\n\n')

    edge.script = fails

    answer = await edge.call("POST", "/v2/models/chat/generate_stream", {"text_input": "a"})

    assert answer.text == 'event: error\ndata: {"status":500,"error":"broken"}\n\n'


# -- the server and its models ---------------------------------------------------------------------


@scenario
async def test_the_server_says_what_it_is_and_whether_it_is_ready(edge: EdgeWorld) -> None:
    server = (await edge.call("GET", "/v2")).json()
    assert (server["name"], server["extensions"]) == (
        "firstlight",
        ["binary_tensor_data", "generate", "parameters"],
    )
    assert (await edge.call("GET", "/v2/health/live")).json() == {"live": True}
    assert (await edge.call("GET", "/v2/health/ready")).json() == {"ready": True}

    edge.store_is_up = False
    failing = await edge.call("GET", "/v2/health/ready")

    assert failing.status == 503
    assert "the store does not answer" in failing.json()["error"]


@scenario
async def test_a_model_says_what_it_takes_and_its_revisions_in_traffic_are_its_versions(
    edge: EdgeWorld,
) -> None:
    edge.script = whole
    await edge.world.deploy("chat", scaling={"grace": 7})
    await edge.call("PUT", "/v1/models/chat/traffic", {"traffic": {"chat@1": 30, "chat@2": 70}})

    described = (await edge.call("GET", "/v2/models/chat")).json()
    of_one = await edge.call("GET", "/v2/models/chat/versions/1")
    asked = await edge.call("POST", "/v2/models/chat/versions/1/infer", asks())

    assert described == of_one.json()
    assert described == {
        "name": "chat",
        "versions": ["2", "1"],
        "platform": "firstlight",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "text_output", "datatype": "BYTES", "shape": [-1]},
            {"name": "finish_reason", "datatype": "BYTES", "shape": [-1]},
        ],
    }
    assert asked.json()["model_version"] == "1"
    assert asked.headers["firstlight-revision"] == "chat@1"


MISSING = [
    ("GET", "/v2/models/chta", 404, "model-not-found"),
    ("GET", "/v2/models/chta/ready", 404, "model-not-found"),
    ("POST", "/v2/models/chta/infer", 404, "model-not-found"),
    ("GET", "/v2/models/chat/versions/2", 404, "revision-not-found"),
    ("GET", "/v2/models/chat/versions/x/ready", 404, "revision-not-found"),
    ("POST", "/v2/models/chat/versions/2/infer", 404, "revision-not-found"),
    ("POST", "/v2/models/chat/versions/01/generate", 404, "revision-not-found"),
    ("GET", "/v2/models/chat/infer", 405, "method-not-allowed"),
    ("POST", "/v2/models/chat/config", 404, "not-found"),
]


@scenario
async def test_what_is_not_there_is_told_in_words(edge: EdgeWorld) -> None:
    for method, path, status, kind in MISSING:
        body = {"text_input": "a"} if path.endswith("generate") else asks()
        answer = await edge.call(method, path, body if method == "POST" else b"")

        assert (answer.status, answer.json()["type"]) == (status, f"/problems/{kind}"), path
        assert isinstance(answer.json()["error"], str)
    assert edge.is_asleep()


@scenario
async def test_a_model_at_zero_is_ready_and_stays_at_zero(edge: EdgeWorld) -> None:
    for path in ("/v2/models/chat/ready", "/v2/models/chat/versions/1/ready"):
        ready = await edge.call("GET", path)
        assert (ready.status, ready.json()) == (200, {"name": "chat", "ready": True})

    await asyncio.sleep(60)

    assert edge.is_asleep()


def test_a_model_whose_replicas_cannot_start_is_not_ready() -> None:
    async def main() -> None:
        async with World(script=Climb(fails_after=1, failure=CRASH)) as world:
            edge = EdgeWorld(world)
            await world.deploy("chat")
            assert (await edge.call("POST", INFER, asks())).status == 503

            ready = await edge.call("GET", "/v2/models/chat/ready")

            assert (ready.status, ready.json()["type"]) == (503, "/problems/replica-failed")
            assert "out of memory" in ready.json()["error"]

    run_virtual(main())


@with_keys
async def test_keys_tenants_and_limits_hold_here_too(
    edge: EdgeWorld, acme: Headers, beta: Headers
) -> None:
    edge.script = whole
    await deploy(edge, acme, "chat")
    await edge.call("PUT", "/v1/tenants/acme", {"requests_per_minute": 1}, headers=ROOT)

    open_to_all = [
        (await edge.call("GET", path)).status
        for path in ("/v2", "/v2/health/live", "/v2/health/ready")
    ]
    unknown = [
        await edge.call("POST", INFER, asks()),
        await edge.call("GET", "/v2/models/chat/ready"),
    ]
    others = [
        await edge.call("POST", INFER, asks(), headers=beta),
        await edge.call("GET", "/v2/models/chat", headers=beta),
    ]
    first = await edge.call("POST", INFER, asks(), headers=acme)
    second = await edge.call("POST", INFER, asks(), headers=acme)

    assert open_to_all == [200, 200, 200]
    assert [it.status for it in unknown] == [401, 401]
    assert [it.status for it in others] == [404, 404]
    assert (first.status, second.status) == (200, 429)
    assert isinstance(second.json()["error"], str)
