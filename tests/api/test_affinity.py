"""Which requests are told to meet."""

import orjson
import pytest

from control_plane.api.affinity import PREFIX_BYTES, prompt_of, session_of
from infra.contracts.tenancy import TenantName
from infra.errors import Invalid
from tests.api.world import CHAT, EdgeWorld, scenario

OURS, THEIRS = TenantName("ours"), TenantName("theirs")
SYSTEM = {"role": "system", "content": "You are terse. " * 100}


def chat(*turns: str, **more: object) -> bytes:
    messages = [SYSTEM, *({"role": "user", "content": turn} for turn in turns)]
    return orjson.dumps({"model": "chat", **more, "messages": messages})


def test_conversations_that_begin_alike_meet_whatever_else_is_asked() -> None:
    key = prompt_of(chat("one"), OURS)

    assert key is not None
    assert prompt_of(chat("one", "two", temperature=0, max_tokens=7), OURS) == key


def test_other_beginnings_and_other_tenants_have_other_keys() -> None:
    other = chat("one").replace(b"terse", b"witty")

    keys = {
        prompt_of(chat("one"), OURS),
        prompt_of(chat("one"), THEIRS),
        prompt_of(other, OURS),
    }

    assert len(keys) == 3


def test_long_prompts_have_a_key_as_conversations_do() -> None:
    body = orjson.dumps({"model": "chat", "prompt": "Once upon a time " * 100})

    assert prompt_of(body, OURS) is not None


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        orjson.dumps(CHAT),
        orjson.dumps({"user": "x" * PREFIX_BYTES, **CHAT}),
        orjson.dumps({"user": "x" * PREFIX_BYTES}),
    ],
)
def test_a_short_prompt_goes_anywhere(body: bytes) -> None:
    assert prompt_of(body, OURS) is None


def test_a_session_has_a_key_of_its_own() -> None:
    session = {b"firstlight-session": b"s-1"}

    key = session_of(session, OURS)

    assert key is not None
    assert session_of({b"firstlight-session": b"s-2"}, OURS) != key
    assert session_of(session, THEIRS) != key
    assert session_of({}, OURS) is None


@pytest.mark.parametrize("name", [b"", b"a b", b"\xff", b"x" * 257])
def test_a_session_without_a_plain_name_is_refused(name: bytes) -> None:
    with pytest.raises(Invalid, match="Firstlight-Session"):
        session_of({b"firstlight-session": name}, OURS)


@scenario
async def test_a_malformed_session_is_a_400_that_wakes_nothing(edge: EdgeWorld) -> None:
    headers = {"firstlight-session": "two words"}
    exchange = await edge.call("POST", "/v1/chat/completions", CHAT, headers=headers)

    assert exchange.status == 400
    assert exchange.json()["error"]["param"] == "Firstlight-Session"
    assert edge.is_asleep()
