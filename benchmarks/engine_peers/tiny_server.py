"""Streamed completions over HTTP for engines that have no server; standard library only.

Runs in the engine's own environment, so it imports nothing of ours.
"""

import json
import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER_LIMIT_S = 300


@dataclass
class Job:
    """A request on its way through the engine; pieces of text arrive in `pieces`, then None."""

    prompt: list[int]
    max_tokens: int
    pieces: "queue.SimpleQueue[str | None]" = field(default_factory=queue.SimpleQueue)
    tokens: int = 0

    def push(self, text: str, tokens: int) -> None:
        self.tokens += tokens
        if text:
            self.pieces.put(text)


def serve(port: int, submit: Callable[[Job], None]) -> None:
    """Answers POST /v1/completions with token ids until the process is killed."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._head("text/plain")
            self.wfile.write(b"ready")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            job = Job(body["prompt"], body["max_tokens"])
            submit(job)
            self._head("text/event-stream")
            while (text := job.pieces.get(timeout=ANSWER_LIMIT_S)) is not None:
                self._event({"choices": [{"index": 0, "text": text}]})
            self._event({"choices": [], "usage": usage(job)})
            self.wfile.write(b"data: [DONE]\n\n")

        def _head(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Connection", "close")
            self.end_headers()

        def _event(self, event: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def usage(job: Job) -> dict[str, int]:
    """As OpenAI spells it."""
    prompt, completion = len(job.prompt), job.tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
