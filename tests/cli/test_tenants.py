import json

import httpx
import pytest

from infra.errors import Conflict
from tests.cli.conftest import Run
from tests.cli.fake_platform import FakePlatform, as_json, problem

KEY = {
    "key_id": "ab12",
    "prefix": "fl_ab12",
    "name": "app\x1b[2J",
    "tenant": "acme",
    "is_admin": False,
    "created_at": 1_700_000_000.0,
    "revoked_at": None,
}
ADMIN = KEY | {"key_id": "cd34", "name": "ops", "tenant": "default", "is_admin": True}
TENANT = {
    "tenant": "acme",
    "limits": {
        "requests_per_minute": 60,
        "tokens_per_minute": 100_000,
        "concurrency": None,
        "weight": 5,
    },
    "keys": 1,
}
USAGE = {
    "tenant": "acme",
    "model": "chat",
    "day": "2026-11-27",
    "requests": 1200,
    "prompt_tokens": 34_000,
    "completion_tokens": 5,
}


def test_a_new_key_goes_to_standard_output_alone(run: Run, platform: FakePlatform) -> None:
    platform.answer("POST /v1/keys", as_json({"key": "fl_ab12_secret", "status": KEY}, 201))

    outcome = run("keys", "create", "app", "--tenant", "acme")

    assert (outcome.code, outcome.out) == (0, "fl_ab12_secret\n")
    assert "not shown again" in outcome.err and "secret" not in outcome.err
    assert platform.asked() == {"name": "app", "tenant": "acme", "is_admin": False}


def test_keys_are_listed_by_what_they_begin_with(run: Run, platform: FakePlatform) -> None:
    platform.answer("GET /v1/keys", as_json({"data": [KEY, ADMIN | {"revoked_at": 1.7e9}]}))

    lines = run("keys", "ls").out.splitlines()

    assert [line.split()[:5] for line in lines] == [
        ["KEY", "TENANT", "NAME", "ROLE", "STATE"],
        ["ab12", "acme", "app[2J", "tenant", "valid"],
        ["cd34", "default", "ops", "admin", "revoked"],
    ]


def test_revoking_says_whose_key_it_was(run: Run, platform: FakePlatform) -> None:
    platform.answer("DELETE /v1/keys/ab12", as_json(KEY | {"revoked_at": 1.7e9}))
    platform.answer("DELETE /v1/keys/cd34", problem(Conflict("the last admin", hint="do so")))

    assert run("keys", "revoke", "ab12").err == "key ab12 (app[2J) is revoked\n"
    refused = run("keys", "revoke", "cd34")
    assert (refused.code, refused.err) == (1, "error: the last admin\nhint: do so\n")


def test_limits_are_set_all_at_once(run: Run, platform: FakePlatform) -> None:
    platform.answer("PUT /v1/tenants/acme", as_json(TENANT))

    outcome = run(
        *("tenants", "set", "acme", "--requests-per-minute", "60"),
        *("--tokens-per-minute", "100000", "--weight", "5"),
    )

    assert platform.asked() == TENANT["limits"]
    assert outcome.out.splitlines()[1].split() == ["acme", "1", "60", "100,000", "-", "5"]


def test_usage_is_asked_for_by_day(run: Run, platform: FakePlatform) -> None:
    platform.answer("GET /v1/usage", as_json({"data": [USAGE]}))

    outcome = run("usage", "--since", "2026-11-01")

    assert outcome.out.splitlines()[1].split() == [
        *("2026-11-27", "acme", "chat", "1,200", "34,000", "5")
    ]
    assert dict(platform.requests[-1].url.params) == {"since": "2026-11-01"}
    assert json.loads(run("usage", "--json").out) == [USAGE]
    assert run("usage", "--since", "yesterday").code == 2


@pytest.mark.parametrize(
    ("address", "verb"),
    [
        ("GET /v1/keys", ("keys", "ls")),
        ("GET /v1/tenants", ("tenants", "ls")),
        ("GET /v1/usage", ("usage",)),
    ],
)
def test_an_empty_list_says_so(
    run: Run, platform: FakePlatform, address: str, verb: tuple[str, ...]
) -> None:
    platform.answer(address, httpx.Response(200, json={"data": []}))

    outcome = run(*verb)

    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err
