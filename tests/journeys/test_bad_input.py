"""Hostile input at a zero-scaled model: a typed problem, at once, and nothing is woken."""

import contextlib
import json
import socket
from typing import Any

import pytest

from tests.support.platform import RunningPlatform

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}

BAD_BODIES: dict[str, tuple[bytes, int, str]] = {
    "not json": (b"{", 400, "malformed-json"),
    "empty": (b"", 400, "malformed-json"),
    "array": (b"[]", 400, "invalid-request"),
    "nan": (b'{"model":"chat","messages":[],"temperature":NaN}', 400, "malformed-json"),
    "invalid utf-8": (b'{"model":"\xff\xfe"}', 400, "malformed-json"),
    "deep nesting": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400, "malformed-json"),
    "deep arrays": (b'{"messages":' + b"[" * 100_000, 400, "malformed-json"),
    "wrong types": (b'{"model":1,"messages":"x"}', 400, "invalid-request"),
    "no messages": (b'{"model":"chat","messages":[]}', 400, "invalid-request"),
    "unknown model": (
        json.dumps(CHAT | {"model": "cat"}).encode(),
        404,
        "model-not-found",
    ),
    "max_tokens 2^63": (
        json.dumps(CHAT | {"max_tokens": 2**63}).encode(),
        400,
        "invalid-request",
    ),
    "max_tokens 0": (json.dumps(CHAT | {"max_tokens": 0}).encode(), 400, "invalid-request"),
    "n 1000": (json.dumps(CHAT | {"n": 1000}).encode(), 400, "invalid-request"),
    "temperature -1": (
        json.dumps(CHAT | {"temperature": -1}).encode(),
        400,
        "invalid-request",
    ),
    "ten thousand stops": (
        json.dumps(CHAT | {"stop": ["x"] * 10_000}).encode(),
        400,
        "invalid-request",
    ),
    "prompt over the context": (
        json.dumps(CHAT | {"messages": [{"role": "user", "content": "word " * 600_000}]}).encode(),
        400,
        "context-length-exceeded",
    ),
    "twice the context in words": (
        json.dumps(CHAT | {"messages": [{"role": "user", "content": "word " * 16_384}]}).encode(),
        400,
        "context-length-exceeded",
    ),
    "body of 100 MB": (b'{"model":"' + b"x" * 100_000_000 + b'"}', 413, "body-too-large"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_gets_a_typed_problem_and_wakes_nothing(
    platform: RunningPlatform, name: str
) -> None:
    body, status, slug = BAD_BODIES[name]
    platform.until_idle("chat")

    code, headers, answer = raw_post(platform.url, "/v1/chat/completions", body)

    assert code == status, answer
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(answer)
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == status
    assert problem["error"]["message"]
    assert "Traceback" not in answer
    assert platform.status("chat")["replicas"] == []


def test_every_problem_has_a_page(platform: RunningPlatform) -> None:
    for slug in ("queue-full", "malformed-json", "cold-start-timeout"):
        assert platform.client.get(f"/problems/{slug}").status_code == 200


def raw_post(url: str, path: str, body: bytes) -> tuple[int, dict[str, str], str]:
    """Sends as much as the server takes, reads what it says."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(body)
        return read_response(connection)


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], str]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, rest = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    wanted: Any = int(headers["content-length"])
    while len(rest) < wanted:
        rest += connection.recv(65536)
    return int(status.split()[1]), headers, rest.decode()
