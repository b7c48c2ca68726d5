"""The console program itself on real sockets: streaming, interrupting, broken lines."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.cli.fake_platform import REQUEST_ID, closing, delta, report, reports

pytestmark = pytest.mark.real


class SlowPlatform:
    """Answers `chat` in two tokens; of `endless` it never stops, of `broken` the line drops."""

    def __init__(self) -> None:
        self.url = ""
        self.first_token_sent = threading.Event()
        self.client_left = threading.Event()


@pytest.fixture
def slow() -> Iterator[SlowPlatform]:
    platform = SlowPlatform()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Is quiet."""

        def do_GET(self) -> None:
            content = reports(report()).content
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Firstlight-Request-Id", REQUEST_ID)
            self.end_headers()
            self.say(": stage weights 40%")
            self.say(": server-timing total;dur=171.4")
            self.say(delta("größer "))
            platform.first_token_sent.set()
            match self.path.split("/")[3]:
                case "endless":
                    self.go_on()
                case "broken":
                    self.close_connection = True
                case _:
                    self.say(delta("als\n"))
                    self.say(closing())
                    self.wfile.write(b"0\r\n\r\n")

        def go_on(self) -> None:
            try:
                while not platform.client_left.wait(0.02):
                    self.say(delta("x"))
            except OSError:
                platform.client_left.set()
            self.close_connection = True

        def say(self, text: str) -> None:
            part = f"{text}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.flush()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        platform.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield platform
        platform.client_left.set()
        server.shutdown()
        thread.join()


def start(
    slow: SlowPlatform, environment: dict[str, str], *arguments: str
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "control_plane.main", *arguments],
        env=environment | {"PLATFORM_URL": slow.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_an_answer_goes_to_standard_output_and_its_waterfall_beside_it(
    slow: SlowPlatform, environment: dict[str, str]
) -> None:
    process = start(slow, environment, "invoke", "chat", "--prompt", "x", "--stream")

    out, err = process.communicate(timeout=100)

    assert (process.returncode, out.decode()) == (0, "größer als\n\n")
    assert "total        171.4 ms to the first token" in err.decode()
    assert b"\x1b" not in err


def test_ctrl_c_hangs_up_and_ends_with_130(slow: SlowPlatform, environment: dict[str, str]) -> None:
    process = start(slow, environment, "invoke", "endless", "--prompt", "x", "--stream")
    assert slow.first_token_sent.wait(100)
    assert process.stdout is not None
    assert process.stdout.read(9).decode() == "größer "

    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (130, b"")
    assert slow.client_left.wait(100)


def test_a_line_that_drops_fails_after_what_was_printed(
    slow: SlowPlatform, environment: dict[str, str]
) -> None:
    process = start(slow, environment, "invoke", "broken", "--prompt", "x", "--stream")

    out, err = process.communicate(timeout=100)

    assert (process.returncode, out.decode()) == (1, "größer ")
    assert err.decode() == (
        "error: the platform closed the connection before its answer was complete\n"
    )


def test_nothing_listening_says_how_to_start_it(environment: dict[str, str]) -> None:
    nowhere = SlowPlatform()
    nowhere.url = "http://127.0.0.1:9"

    process = start(nowhere, environment, "ls")

    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert err.decode() == (
        "error: nothing answers at http://127.0.0.1:9\nhint: start it with `platform up`\n"
    )


def test_a_reader_that_has_seen_enough_is_no_error(
    slow: SlowPlatform, environment: dict[str, str]
) -> None:
    process = start(slow, environment, "coldstarts", "chat", "--json")
    assert process.stdout is not None
    process.stdout.close()

    assert process.wait(timeout=100) in {0, 1}
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
