"""For whom a request is computed and how long it may take, as the gateway says."""

import orjson
import pytest

from infra.virtual_time import run_virtual
from tests.server.support import AUTHORIZATION, Client, chat_body, engine_saying, make_server
from worker.engine.fake import FakeEngine
from worker.engine.request import GenerationRequest

CHAT = "/v1/chat/completions"


def submitted(*headers: tuple[bytes, bytes]) -> GenerationRequest:
    engine: FakeEngine = engine_saying("hi")
    client = Client(CHAT, orjson.dumps(chat_body()), headers=[AUTHORIZATION, *headers])
    reply = run_virtual(client.run(make_server(engine)))
    assert reply.status == 200
    [request] = engine.submitted
    return request


def test_tenant_and_deadline_reach_the_engine() -> None:
    request = submitted((b"firstlight-tenant", b"acme"), (b"firstlight-timeout", b"7.500"))

    assert request.tenant == "acme"
    assert (
        request.deadline is not None and request.deadline == 7.5
    )  # of virtual time, which begins at 0


@pytest.mark.parametrize("timeout", [b"", b"-1", b"inf", b"nan", b"1e9", b"9" * 400, b"1.5555"])
def test_what_is_no_number_of_seconds_is_no_deadline(timeout: bytes) -> None:
    assert submitted((b"firstlight-timeout", timeout)).deadline is None


@pytest.mark.parametrize("tenant", [b"", b"A", b"a b", b"\xff", b"x" * 64])
def test_what_is_no_tenant_is_nobodys(tenant: bytes) -> None:
    assert submitted((b"firstlight-tenant", tenant)).tenant == ""
