"""The instance metadata service, version 2, as its users see it: over HTTP, with session tokens.

UserGuide/instancedata-data-retrieval and instancedata-data-categories say what is where. Give its
`url` to whoever reads metadata: AWS_EC2_METADATA_SERVICE_ENDPOINT.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

_TOKEN_HEADER = "X-aws-ec2-metadata-token"
_LONGEST_TTL_S = 21_600


@dataclass
class Imds:
    """One instance's metadata. Tests change `values`, paths below `/latest/`, while it answers."""

    url: str = ""
    values: dict[str, str] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        instance_id: str = "i-0123456789abcdef0",
        *,
        target_state: str = "InService",
        zone: str = "us-east-1a",
        address: str = "127.0.0.1",
    ) -> "Imds":
        """An instance of an Auto Scaling group that was just launched."""
        identity = {"instanceId": instance_id, "region": zone[:-1], "availabilityZone": zone}
        return cls(
            values={
                "meta-data/instance-id": instance_id,
                "meta-data/local-ipv4": address,
                "meta-data/placement/availability-zone": zone,
                "meta-data/placement/region": zone[:-1],
                "meta-data/autoscaling/target-lifecycle-state": target_state,
                "dynamic/instance-identity/document": json.dumps(identity),
            }
        )

    def target_state(self, state: str) -> None:
        """userguide/retrieving-target-lifecycle-state-through-imds: `InService`, `Warmed:Stopped`,
        `Terminated` and so on."""
        self.values["meta-data/autoscaling/target-lifecycle-state"] = state

    def interrupt(self, time: str, action: str = "terminate") -> None:
        """UserGuide/spot-instance-termination-notices; until then the path is not found."""
        body = json.dumps({"action": action, "time": time})
        self.values["meta-data/spot/instance-action"] = body

    def recommend_rebalance(self, time: str) -> None:
        """UserGuide/rebalance-recommendations; until then the path is not found."""
        body = json.dumps({"noticeTime": time})
        self.values["meta-data/events/recommendations/rebalance"] = body

    def forget_tokens(self) -> None:
        """Every session has expired."""
        self.tokens.clear()


@contextmanager
def serving(imds: Imds) -> Iterator[Imds]:
    """Answers on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            ttl = self.headers.get(f"{_TOKEN_HEADER}-ttl-seconds", "")
            if self.path != "/latest/api/token" or "X-Forwarded-For" in self.headers:
                self._answer(403, "")
            elif not ttl.isdigit() or not 1 <= int(ttl) <= _LONGEST_TTL_S:
                self._answer(400, "")
            else:
                token = secrets.token_urlsafe(16)
                imds.tokens.add(token)
                self._answer(200, token)

        def do_GET(self) -> None:
            path = self.path.removeprefix("/latest/")
            if self.headers.get(_TOKEN_HEADER) not in imds.tokens:
                self._answer(401, "")
                return
            imds.asked.append(path)
            value = imds.values.get(path)
            self._answer(404 if value is None else 200, value or "")

        def _answer(self, status: int, body: str) -> None:
            content = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    imds.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield imds
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
