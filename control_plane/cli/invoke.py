"""`platform invoke`: calls a model, shows how it wakes, and where the wait went."""

import json
import sys
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from control_plane.cli.answers import Stream
from control_plane.cli.coldstarts import print_waterfall
from control_plane.cli.failure import CommandFailed, from_problem
from control_plane.cli.session import Session, is_interactive
from control_plane.cli.sse import Comment, Event
from control_plane.cli.units import duration, milliseconds
from control_plane.cli.waiting import Waiting
from infra.contracts.generation import InvokeEvent
from infra.contracts.openai import Usage
from infra.contracts.problem import Problem

STANDARD_INPUT = "-"
READ_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Invocation:
    """What is asked of which model, and how the answer is shown."""

    model: str
    body: dict[str, Any]
    is_streamed: bool  # tokens are printed as they come, not the text when it is whole
    is_json: bool


def request_body(
    prompt: str | None,
    *,
    is_raw: bool,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: list[str],
) -> dict[str, Any]:
    """A chat of one message, or with `is_raw` the prompt as it is."""
    text = _prompt_text(prompt)
    body: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
    }
    if is_raw:
        body["prompt"] = text
    else:
        messages = [{"role": "system", "content": system}] if system is not None else []
        body["messages"] = [*messages, {"role": "user", "content": text}]
    return {key: value for key, value in body.items() if value is not None}


def invoke(session: Session, invocation: Invocation) -> None:
    """Prints the answer to standard output; progress, speed and the waterfall beside it."""
    if invocation.is_json and not invocation.is_streamed:
        with Waiting(session.err, f"waiting for {invocation.model}", now=session.now):
            answer = session.platform.invoke(invocation.model, invocation.body)
        session.print_json(answer.body)
        if answer.was_cold:
            print_waterfall(session, invocation.model, answer.request_id)
        return
    _Dialogue(session, invocation).run()


def leave(session: Session, name: str, body: dict[str, Any], *, is_json: bool) -> None:
    """Leaves a job and prints its id, or all of it as JSON."""
    job = session.platform.leave(name, body)
    if is_json:
        session.print_json(job.model_dump_json())
        return
    session.write(f"{job.id}\n")
    session.err.print(f"the job is on disk: platform jobs show {job.id}")


class _Dialogue:
    """One streaming invocation from its request to its waterfall."""

    def __init__(self, session: Session, invocation: Invocation) -> None:
        self._session = session
        self._invocation = invocation
        self._text: list[str] = []
        self._usage: Usage | None = None
        self._first_at: float | None = None
        self._was_cold = False

    def run(self) -> None:
        session, model = self._session, self._invocation.model
        started_at = session.now()
        with (
            Waiting(session.err, f"waking {model}", now=session.now) as waiting,
            session.platform.invoke_stream(model, self._invocation.body) as stream,
        ):
            self._was_cold = stream.was_cold
            self._read(stream, waiting)
        self._finish(started_at, session.now())
        if self._was_cold:
            print_waterfall(session, model, stream.request_id)

    def _read(self, stream: Stream, waiting: Waiting) -> None:
        is_complete = False
        for item in stream.items:
            match item:
                case Comment(text):
                    self._hear(text, waiting)
                case Event("error", data):
                    raise from_problem(_problem(data))
                case Event(_, data):
                    self._show(data, waiting)
                    is_complete = is_complete or self._usage is not None
        if not is_complete:
            raise CommandFailed("the answer ended before it was complete")

    def _hear(self, comment: str, waiting: Waiting) -> None:
        kind, _, rest = comment.partition(" ")
        match kind:
            case "stage":
                waiting.show(rest.removesuffix(" 0%"))
            case "server-timing":
                self._was_cold = True
            case _:  # a word to keep the line open
                pass

    def _show(self, data: str, waiting: Waiting) -> None:
        event = _event(data)
        if self._first_at is None:
            self._first_at = self._session.now()
            waiting.stop()
        self._usage = event.usage or self._usage
        if self._invocation.is_json:
            self._session.print_json(data)
        elif self._invocation.is_streamed:
            self._session.write(event.delta)
        else:
            self._text.append(event.delta)

    def _finish(self, started_at: float, ended_at: float) -> None:
        if self._invocation.is_json:
            return
        self._session.write("".join(self._text) + "\n")
        usage, first_at = self._usage, self._first_at
        if usage is None or first_at is None:
            return
        count, rest_s = usage.completion_tokens, ended_at - first_at
        speed = f", {(count - 1) / rest_s:.1f} tokens/s" if count > 1 and rest_s > 0 else ""
        self._session.err.print(
            f"{count} tokens in {duration(ended_at - started_at)}, the first after "
            f"{milliseconds(first_at - started_at)}{speed}",
            style="bright_black",
        )


def _prompt_text(prompt: str | None) -> str:
    """The prompt, or standard input where it is `-` or was left out and something is piped in."""
    if prompt is not None and prompt != STANDARD_INPUT:
        return prompt
    if prompt is None and is_interactive():
        raise CommandFailed("there is no prompt", hint="give one with --prompt, or pipe it in")
    try:
        return sys.stdin.buffer.read(READ_BYTES).decode()
    except UnicodeDecodeError as error:
        raise CommandFailed(f"standard input is not UTF-8 at byte {error.start}") from error


def _event(data: str) -> InvokeEvent:
    try:
        return InvokeEvent.model_validate_json(data)
    except ValidationError as error:
        raise CommandFailed(
            "the platform's answer cannot be read",
            hint="are the platform and this command of one version?",
        ) from error


def _problem(data: str) -> Problem:
    """The error event's data: a problem, or just its OpenAI error member."""
    try:
        content = json.loads(data)
        detail = content["error"]["message"]
        return Problem.model_validate(
            {"type": "about:blank", "title": "Error", "status": 500, "detail": detail} | content
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CommandFailed("the answer ended with an error that cannot be read") from error
