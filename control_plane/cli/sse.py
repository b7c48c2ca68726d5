"""Server-sent events out of bytes (WHATWG HTML, section 9.2), comments included."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from control_plane.cli.failure import CommandFailed

MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Comment:
    """A line that clients may ignore; ours say how a wait goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `kind` is "message" unless the server named it."""

    kind: str
    data: str


def read_events(chunks: Iterable[bytes]) -> Iterator[Comment | Event]:
    """Comments and events in order; an event that is cut off at the end is none."""
    kind = ""
    data: list[str] = []
    for line in _lines(chunks):
        if not line:
            if data:
                yield Event(kind or "message", "\n".join(data))
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                yield Comment(value)
            case "event":
                kind = value
            case "data":
                data.append(value)
            case _:  # id, retry: of no use here
                pass


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines without their ends, which are LF or CRLF; the last one only if it ended."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if len(rest) > MAX_LINE_BYTES:
            raise CommandFailed("the platform sends an event without an end")
