import socket
from collections.abc import Callable

import httpx
import pytest

from control_plane.cli.client import PlatformClient
from control_plane.cli.failure import CommandFailed
from control_plane.cli.session import Session
from infra.errors import Unauthorized
from tests.cli.conftest import Run
from tests.cli.fake_platform import URL, FakePlatform, as_json, problem


def raising(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            httpx.ConnectError("refused"),
            f"error: nothing answers at {URL}\nhint: start it with `platform up`\n",
        ),
        (
            httpx.ConnectTimeout("slow"),
            f"error: {URL} cannot be reached: no connection after 5 s\nhint: check PLATFORM_URL\n",
        ),
        (httpx.ReadTimeout("slow"), f"error: {URL} did not answer in time\n"),
        (
            httpx.RemoteProtocolError("cut"),
            "error: the platform closed the connection before its answer was complete\n",
        ),
        (
            httpx.ReadError("reset"),
            "error: the platform closed the connection before its answer was complete\n",
        ),
        (httpx.UnsupportedProtocol("no"), f"error: {URL}: no\n"),
    ],
)
@pytest.mark.parametrize("verb", ["ls", "invoke", "logs"])
def test_a_line_that_fails_is_told_in_words(
    run: Run, platform: FakePlatform, verb: str, error: Exception, expected: str
) -> None:
    address, *arguments = {
        "ls": ("GET /v1/models", "ls"),
        "invoke": ("POST /v1/models/chat/invoke", "invoke", "chat", "--prompt", "x"),
        "logs": ("GET /v1/models/chat/logs", "logs", "chat"),
    }[verb]
    platform.answer(address, raising(error))

    outcome = run(*arguments)

    assert (outcome.code, outcome.out, outcome.err) == (1, "", expected)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (
            httpx.Response(502, text="<html>bad gateway</html>"),
            f"error: GET {URL}/v1/models answered 502 without saying why\n"
            "hint: is this address the platform's?\n",
        ),
        (
            httpx.Response(302, headers={"Location": "http://elsewhere"}),
            f"error: GET {URL}/v1/models answered 302 without saying why\n"
            "hint: is this address the platform's?\n",
        ),
        (
            problem(Unauthorized("the API key is missing")),
            "error: the API key is missing\nhint: set PLATFORM_API_KEY to the platform's key\n",
        ),
        (
            as_json({"data": [{"id": "x"}]}),
            "error: the platform's answer cannot be read: Field required\n"
            "hint: are the platform and this command of one version?\n",
        ),
        (
            httpx.Response(200, content=b"\xff\xfe"),
            "error: the platform's answer cannot be read: Invalid JSON: expected value at line 1 "
            "column 1\nhint: are the platform and this command of one version?\n",
        ),
    ],
)
def test_an_answer_that_is_none_is_told_in_words(
    run: Run, platform: FakePlatform, response: httpx.Response, expected: str
) -> None:
    platform.answer("GET /v1/models", response)

    outcome = run("ls")

    assert (outcome.code, outcome.out, outcome.err) == (1, "", expected)


def test_a_message_cannot_steer_the_terminal(run: Run, platform: FakePlatform) -> None:
    error = Unauthorized("a\x1b[2Jb", hint="\x1b]0;title\x07")
    platform.answer("GET /v1/models", problem(error))

    assert run("ls").err == "error: a[2Jb\nhint: ]0;title\n"


@pytest.mark.parametrize("verb", ["ls", "invoke", "wait"])
def test_ctrl_c_ends_with_130_and_no_traceback(run: Run, platform: FakePlatform, verb: str) -> None:
    def interrupt(request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    for address in ("GET /v1/models", "POST /v1/models/chat/invoke", "GET /v1/models/chat"):
        platform.answer(address, interrupt)

    arguments = {
        "ls": ("ls",),
        "invoke": ("invoke", "chat", "--prompt", "x", "--stream"),
        "wait": ("wait", "chat", "--for", "idle"),
    }[verb]
    outcome = run(*arguments)

    assert (outcome.code, outcome.err) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("lss",), "error: no such command 'lss'. Did you mean 'ls'?\nhint: platform --help\n"),
        (("ls", "--jsno"), "error: no such option: --jsno"),
        (("invoke",), "error: missing argument 'name'\nhint: platform invoke --help\n"),
        (("wait", "chat"), "error: missing option '--for'"),
        (
            ("wait", "chat", "--for", "tea"),
            "error: invalid value for '--for': 'tea' is not one of 'ready', 'idle'\n",
        ),
        (("coldstarts", "chat", "--last", "0"), "error: invalid value for '--last'"),
        (("coldstarts", "chat", "--last", "many"), "error: invalid value for '--last'"),
        (("invoke", "chat", "--max-tokens", "x"), "error: invalid value for '--max-tokens'"),
        (("ls", "extra"), "error: got unexpected extra argument"),
    ],
)
def test_wrong_usage_ends_with_2(run: Run, arguments: tuple[str, ...], expected: str) -> None:
    outcome = run(*arguments)

    assert outcome.code == 2
    assert outcome.err.startswith(expected)
    assert outcome.err.splitlines()[-1].startswith("hint: platform")


@pytest.mark.parametrize("arguments", [(), ("models",)])
def test_nothing_asked_is_answered_with_help(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)

    assert outcome.code == 2
    assert outcome.err.startswith("Usage: platform")


def test_help_ends_with_0(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help").code == 0
    assert run("invoke", "--help").code == 0
    assert "--max-tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "url", ["", "localhost:8470", "ftp://x", "http://", "http://a/b", "http://a b"]
)
def test_a_url_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(CommandFailed, match="--url is not an address"):
        Session.start(url)
    monkeypatch.setenv("PLATFORM_URL", url)
    with pytest.raises(CommandFailed, match="PLATFORM_URL is not an address"):
        Session.start(None)


def test_the_environment_says_where_the_platform_is_and_what_key_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLATFORM_URL", "http://10.0.0.1:9/")
    monkeypatch.setenv("PLATFORM_API_KEY", "a-secret-of-mine")

    session = Session.start(None)

    assert session.platform.url == "http://10.0.0.1:9"
    assert session.platform.sends_key
    session.platform.close()


def test_nothing_listening_is_said_with_what_to_do() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    platform = PlatformClient.connect(f"http://127.0.0.1:{port}", api_key=None)

    with pytest.raises(CommandFailed) as caught:
        platform.models()

    assert caught.value.message == f"nothing answers at http://127.0.0.1:{port}"
    assert caught.value.hint == "start it with `platform up`"
    platform.close()
