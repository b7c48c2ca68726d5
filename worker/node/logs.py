"""What replicas write, read from their files in bounded portions and kept until it is shipped."""

import os
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from infra.clock import Clock
from infra.contracts.base import ReplicaId, RevisionName
from infra.contracts.node import LogLine

LONGEST_LINE = 8192  # characters; LogLine's own limit
READ_BYTES = 256 << 10  # of one file at one poll
KEPT_LINES = 5000  # while the control plane is away; the oldest go first
LARGEST_FILE = 16 << 20  # bytes; a longer file is cut back to nothing once read
KEPT_FILES = 50
KEPT_BYTES = 128 << 20

_UNSAFE = re.compile(r"[^A-Za-z0-9@._-]")


@dataclass
class LineBudget:
    """A token bucket: `burst` lines at once, `rate` a second for ever."""

    rate: float = 200.0
    burst: float = 1000.0
    _tokens: float = field(default=-1.0, init=False)
    _at: float = field(default=0.0, init=False)

    def grant(self, wanted: int, *, now: float) -> int:
        """How many of `wanted` lines may pass at `now` (seconds of any steady clock)."""
        if self._tokens < 0:
            self._tokens = self.burst
        else:
            self._tokens = min(self.burst, self._tokens + max(0.0, now - self._at) * self.rate)
        self._at = now
        granted = min(wanted, int(self._tokens))
        self._tokens -= granted
        return granted


class LineSplitter:
    """Bytes in, lines out; a line longer than the limit is cut into several."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, without their ends; undecodable bytes become U+FFFD."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > LONGEST_LINE:
            lines.append(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]
        return [piece for line in lines for piece in _pieces(line)]

    def flush(self) -> list[str]:
        """The last line, if it has no end."""
        line, self._rest = self._rest, b""
        return _pieces(line) if line else []


def _pieces(line: bytes) -> list[str]:
    text = line.decode(errors="replace").rstrip("\r").replace("\0", "")
    return [text[at : at + LONGEST_LINE] for at in range(0, len(text), LONGEST_LINE)] or [""]


@dataclass
class _Tail:
    """Where we are in one replica's file."""

    revision: RevisionName
    path: Path
    offset: int = 0
    splitter: LineSplitter = field(default_factory=LineSplitter)
    budget: LineBudget = field(default_factory=LineBudget)
    last_line: str = ""
    dropped: int = 0

    def read(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(READ_BYTES)
        except OSError:
            return []
        self.offset += len(data)
        if self.offset > LARGEST_FILE:
            os.truncate(self.path, 0)  # its writers append, so they go on at the start
            self.offset = 0
        lines = self.splitter.feed(data)
        self._remember(lines)
        return lines

    def finish(self) -> list[str]:
        lines = self.read() + self.splitter.flush()
        self._remember(lines)
        return lines

    def _remember(self, lines: list[str]) -> None:
        for line in reversed(lines):
            if line.strip():
                self.last_line = line.strip()
                return


class ReplicaLogs:
    """The log files of one node, one a replica, and the lines not yet shipped."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._clock = clock
        self._tails: dict[ReplicaId, _Tail] = {}
        self._lines: deque[LogLine] = deque(maxlen=KEPT_LINES)

    def path(self, replica_id: ReplicaId) -> Path:
        """Where that replica writes."""
        return self._folder / f"{_UNSAFE.sub('_', replica_id)[:128]}.log"

    def open(self, replica_id: ReplicaId, revision: RevisionName) -> Path:
        """Follows that replica's file from its present end."""
        path = self.path(replica_id)
        offset = path.stat().st_size if path.exists() else 0
        self._tails.setdefault(replica_id, _Tail(revision, path, offset))
        return path

    def poll(self) -> bool:
        """Reads what is new; whether there is anything to ship."""
        for replica_id, tail in self._tails.items():
            self._keep(replica_id, tail, tail.read())
        return bool(self._lines)

    def close(self, replica_id: ReplicaId) -> str:
        """Reads the rest of an ended replica's file and gives its last line that is not blank."""
        tail = self._tails.pop(replica_id, None)
        if tail is None:
            return ""
        self._keep(replica_id, tail, tail.finish())
        self.prune()
        return tail.last_line

    def take(self, most: int) -> tuple[LogLine, ...]:
        """The oldest unshipped lines, now the caller's."""
        return tuple(self._lines.popleft() for _ in range(min(most, len(self._lines))))

    def give_back(self, lines: tuple[LogLine, ...]) -> None:
        """Lines that could not be shipped; they go first the next time, as far as room allows."""
        room = KEPT_LINES - len(self._lines)
        self._lines.extendleft(reversed(lines[max(0, len(lines) - room) :]))

    def prune(self) -> None:
        """Removes the oldest files of ended replicas beyond the limits."""
        live = {tail.path for tail in self._tails.values()}
        files = [
            (path, stat.st_mtime, stat.st_size)
            for path in self._folder.glob("*.log")
            if path not in live and (stat := _stat(path)) is not None
        ]
        for path in surplus(files):
            path.unlink(missing_ok=True)

    def _keep(self, replica_id: ReplicaId, tail: _Tail, lines: list[str]) -> None:
        if not lines:
            return
        now = self._clock.now()
        granted = tail.budget.grant(len(lines), now=now)
        if tail.dropped and granted:
            lines = [f"… {tail.dropped} lines dropped: too many at once", *lines]
            tail.dropped = 0
            granted += 1
        tail.dropped += len(lines) - granted
        self._lines.extend(
            LogLine(at=now, replica_id=replica_id, revision=tail.revision, text=text)
            for text in lines[:granted]
        )


def last_line(path: Path) -> str:
    """The last line of a file that is not blank; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LONGEST_LINE))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def surplus(files: Iterable[tuple[Path, float, int]]) -> list[Path]:
    """Of (path, modified at, bytes): those to remove, so that the newest stay within the limits."""
    kept_bytes, removed = 0, []
    newest_first = sorted(files, key=lambda file: file[1], reverse=True)
    for rank, (path, _, size) in enumerate(newest_first):
        kept_bytes += size
        if rank >= KEPT_FILES or kept_bytes > KEPT_BYTES:
            removed.append(path)
    return removed


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
