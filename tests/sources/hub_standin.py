"""A local stand-in of the Hugging Face Hub's HTTP API, with faults to switch on."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.sources.models import git_sha1, sha256


class HubStandin:
    """Repositories by name; large files are kept on a "CDN" and reached by a redirect."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.token: str | None = None
        self.status: int | None = None  # answered to everything
        self.download_status: int | None = None  # answered to downloads only
        self.cuts: Counter[str] = Counter()  # how often the line drops half-way, by large file
        self.flips_bytes = False
        self.url = ""
        self.cdn_url = ""

    def commit(self, repository: str) -> str:
        names = sorted(self.repositories[repository].items())
        return sha256(repr(names).encode())[:40]

    def downloads(self) -> Counter[str]:
        """How often each file's bytes were asked for."""
        return Counter(
            request.rpartition("/")[2]
            for request in self.requests
            if request.startswith("GET /cdn")
        )


def is_large(content: bytes) -> bool:
    return len(content) > 10_000


@contextmanager
def hub_standin() -> Iterator[HubStandin]:
    """Serves on a free port until the block ends."""
    hub = HubStandin()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def log_message(self, *args: object) -> None:
            """Is quiet."""

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            match path.split("/")[1:]:
                case _ if hub.status is not None:
                    self.fail(hub.status, "")
                case ["api", "models", org, name, "revision", revision]:
                    self.model_info(f"{org}/{name}", revision)
                case ["api", "models", org, name]:
                    self.model_info(f"{org}/{name}", "main")
                case [org, name, "resolve", revision, file]:
                    self.resolve(f"{org}/{name}", revision, file)
                case ["cdn", org, name, file]:
                    assert "Authorization" not in self.headers, "the token left the hub"
                    self.send(hub.repositories[f"{org}/{name}"][file], {})
                case _:
                    self.fail(404, "EntryNotFound")

        def is_refused(self, repository: str, revision: str) -> bool:
            bearer = self.headers.get("Authorization")
            if hub.token is not None and bearer != f"Bearer {hub.token}":
                self.fail(401, "GatedRepo" if bearer else "RepoNotFound")
            elif repository not in hub.repositories:
                self.fail(404, "RepoNotFound")
            elif revision not in {"main", hub.commit(repository)}:
                self.fail(404, "RevisionNotFound")
            else:
                return False
            return True

        def model_info(self, repository: str, revision: str) -> None:
            if self.is_refused(repository, revision):
                return
            siblings = []
            for name, content in hub.repositories[repository].items():
                entry = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
                if is_large(content):
                    entry["lfs"] = {
                        "sha256": sha256(content),
                        "size": len(content),
                        "pointerSize": 134,
                    }
                siblings.append(entry)
            body = {"id": repository, "sha": hub.commit(repository), "siblings": siblings}
            self.send(json.dumps(body).encode(), {"Content-Type": "application/json"})

        def resolve(self, repository: str, revision: str, file: str) -> None:
            if hub.download_status is not None:
                self.fail(hub.download_status, "")
                return
            if self.is_refused(repository, revision):
                return
            content = hub.repositories[repository].get(file)
            if content is None:
                self.fail(404, "EntryNotFound")
                return
            headers = {"X-Repo-Commit": hub.commit(repository)}
            if not is_large(content):
                self.send(content, headers | {"ETag": f'"{git_sha1(content)}"'})
                return
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-Etag": f'"{sha256(content)}"',
                "Location": f"{hub.cdn_url}/cdn/{repository}/{file}",
            }
            self.send(b"", headers, status=302)

        def send(
            self,
            content: bytes,
            headers: dict[str, str],
            *,
            status: int = 200,
        ) -> None:
            start, stop = 0, len(content)
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes=") and status == 200:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), int(last) + 1 if last else len(content)
                status = 206
                which = f"bytes {start}-{stop - 1}/{len(content)}"
                headers = headers | {"Content-Range": which}
            body = content[start:stop]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if is_large(content) and hub.flips_bytes:
                body = bytes(byte ^ 1 for byte in body)
            name = self.path.rpartition("/")[2]
            if is_large(content) and hub.cuts[name]:
                hub.cuts[name] -= 1
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
                return
            self.wfile.write(body)

        def fail(self, status: int, code: str) -> None:
            self.send(b"{}", {"X-Error-Code": code} if code else {}, status=status)

    with serving(Handler) as hub.url, serving(Handler) as hub.cdn_url:
        yield hub


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """An origin of its own: the hub's client keeps its token from other origins."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
