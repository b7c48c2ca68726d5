"""Requests as clients send them, each with what became of it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.chaos.records import Ending, Seen

MODEL = "chat"
LONGEST_S = 150.0  # the sum of all limits of a request, and the longest stall
PROMPTS = ("The capital of France is", "Once upon a time", "Two and two are", "In the beginning")
LARGE = len(PROMPTS)  # the question whose answer, as a job's, goes to the object store
QUESTIONS = range(LARGE + 1)

_GREEDY = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
_LARGE = {"max_tokens": 80, "temperature": 0, "ignore_eos": True, "top_logprobs": 20}


@dataclass
class Outcome:
    """What a request came to, until it is written down."""

    ending: Ending = Ending.UNREACHED
    code: str = ""
    detail: str = ""


class Client:
    """Sends requests to wherever the platform is now; `answers` are those to the questions."""

    def __init__(
        self,
        url: Callable[[], str],
        headers: Mapping[str, str],
        answers: Mapping[int, str],
        write_down: Callable[[Seen], None],
    ) -> None:
        self._url = url
        self._headers = dict(headers)
        self._answers = answers
        self._write_down = write_down
        # A connection each: one that is kept may be closed just when it is used again.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.AsyncClient(limits=limits, timeout=LONGEST_S)

    async def close(self) -> None:
        await self.http.aclose()

    async def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One call of the management API; raises httpx.TransportError."""
        headers = self._headers | more.pop("headers", {})
        url = self._url() + path
        return await self.http.request(method, url, headers=headers, **more)

    async def ask(self, question: int, *, model: str = MODEL, key: str | None = None) -> Outcome:
        """A request whose caller waits for the whole answer."""

        async def run(outcome: Outcome) -> None:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            path, body = asked(question, model)
            response = await self.send("POST", path, json=body, headers=headers)
            outcome.ending, outcome.code, outcome.detail = self._judge(question, response)

        return await self._recorded("ask", run)

    async def stream(self, question: int, *, leaves_after: int | None = None) -> Outcome:
        """A stream, read to its end or left after so many events."""

        async def run(outcome: Outcome) -> None:
            url, text, is_done = self._url() + "/v1/completions", "", False
            body = streamed(question)
            async with self.http.stream("POST", url, json=body, headers=self._headers) as response:
                if response.status_code != 200:
                    await response.aread()
                    outcome.ending, outcome.code, outcome.detail = self._judge(question, response)
                    return
                outcome.ending = Ending.CUT
                events = 0
                async for kind, data in _events(response):
                    events += 1
                    if leaves_after is not None and events > leaves_after:
                        outcome.ending = Ending.LEFT
                        return
                    if kind == "error":
                        outcome.ending, outcome.code = Ending.EVENT, _code(data)
                        outcome.detail = data
                        return
                    is_done = data == "[DONE]"
                    if not is_done:
                        text += "".join(it["text"] for it in json.loads(data)["choices"])
                if not is_done:
                    outcome.ending = Ending.SILENT
                else:
                    outcome.ending, outcome.detail = self._compare(question, text)

        return await self._recorded("stream" if leaves_after is None else "leave", run)

    async def leave(self, question: int, *, after_s: float) -> Outcome:
        """A request whose client goes away, wherever it stands then."""

        async def run(outcome: Outcome) -> None:
            path, body = asked(question)
            try:
                async with asyncio.timeout(after_s):
                    response = await self.send("POST", path, json=body)
            except TimeoutError:
                outcome.ending = Ending.LEFT
                return
            outcome.ending, outcome.code, outcome.detail = self._judge(question, response)

        return await self._recorded("leave", run)

    async def read_slowly(self, question: int, *, pause_s: float) -> Outcome:
        """A stream of which a few bytes are read at a time."""

        async def run(outcome: Outcome) -> None:
            url = httpx.URL(self._url())
            body = json.dumps(streamed(question)).encode()
            head = ["POST /v1/completions HTTP/1.1", f"host: {url.host}", "connection: close"]
            head += ["content-type: application/json", f"content-length: {len(body)}"]
            head += [f"{name}: {value}" for name, value in self._headers.items()]
            reader, writer = await asyncio.open_connection(url.host, url.port, limit=256)
            try:
                writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
                raw = b""
                while part := await reader.read(200):
                    raw += part
                    await asyncio.sleep(pause_s)
            finally:
                writer.close()
            outcome.ending, outcome.code, outcome.detail = _raw_ending(raw)

        return await self._recorded("slow", run)

    async def _recorded(self, kind: str, run: Callable[[Outcome], Awaitable[None]]) -> Outcome:
        outcome, began_at = Outcome(), time.monotonic()
        try:
            async with asyncio.timeout(LONGEST_S):
                await run(outcome)
        except TimeoutError:
            outcome.ending = Ending.HUNG
        except (httpx.TransportError, OSError) as error:
            outcome.detail = repr(error)  # the ending says how far it had come
        self._write_down(
            Seen(kind, began_at, time.monotonic(), outcome.ending, outcome.code, outcome.detail)
        )
        return outcome

    def _judge(self, question: int, response: httpx.Response) -> tuple[Ending, str, str]:
        if response.status_code == 200:
            ending, detail = self._compare(question, answer_in(response.json()))
            return ending, "", detail
        if not response.headers.get("content-type", "").startswith("application/problem+json"):
            return Ending.WRONG, "", f"{response.status_code}: {response.text[:200]}"
        return Ending.PROBLEM, _code(response.text), response.text

    def _compare(self, question: int, text: str) -> tuple[Ending, str]:
        expected = self._answers.get(question, text)
        if text == expected:
            return Ending.ANSWERED, ""
        return Ending.WRONG, f"{text!r} instead of {expected!r}"


async def pause(over: asyncio.Event, seconds: float) -> None:
    """Waits so long, or until all is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await over.wait()


def asked(question: int, model: str = MODEL) -> tuple[str, dict[str, Any]]:
    """Path and body of a request that has one right answer."""
    if question == LARGE:
        messages = [{"role": "user", "content": "Tell me everything"}]
        body = {"model": model, "messages": messages, "logprobs": True, **_LARGE}
        return "/v1/chat/completions", body
    return f"/v1/models/{model}/invoke", {"prompt": PROMPTS[question], **_GREEDY}


def streamed(question: int) -> dict[str, Any]:
    """The body of a completion that has the same answer, in parts."""
    return {"model": MODEL, "prompt": PROMPTS[question], "stream": True, **_GREEDY}


def answer_in(body: Any) -> str:
    """The text of an answer to what was `asked`."""
    return str(body["output"] if "output" in body else body["choices"][0]["message"]["content"])


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """Kind and data of each server-sent event; comments are left out."""
    kind = ""
    async for line in response.aiter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, line.removeprefix("data: ")
            kind = ""


def _raw_ending(raw: bytes) -> tuple[Ending, str, str]:
    """How a response that was read byte by byte ended."""
    if not raw.startswith(b"HTTP/1.1 "):
        return Ending.UNREACHED, "", raw[:100].decode(errors="replace")
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return Ending.PROBLEM, _code(body.decode(errors="replace")), ""
    if b"data: [DONE]" in body:
        return Ending.ANSWERED, "", ""
    if b"event: error\n" in body:
        problem = body.partition(b"event: error\n")[2].partition(b"data: ")[2].partition(b"\n")[0]
        return Ending.EVENT, _code(problem.decode(errors="replace")), ""
    is_whole = body.endswith(b"0\r\n\r\n")
    return (Ending.SILENT if is_whole else Ending.CUT), "", body[-100:].decode(errors="replace")


def _code(problem: str) -> str:
    """The code of a typed error; the start of what is none."""
    try:
        return str(json.loads(problem)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"untyped: {problem[:100]}"
