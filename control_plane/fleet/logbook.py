"""The last lines of every model's log, kept in memory, with followers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from infra.contracts.base import ModelName

MAX_TEXT = 8192


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line; `source` is a replica's id or `platform`."""

    at: float
    source: str
    text: str


class _Ring:
    """The newest lines, bounded in number and in characters."""

    def __init__(self, max_lines: int, max_characters: int) -> None:
        self.entries: deque[LogEntry] = deque()
        self._max_lines = max_lines
        self._max_characters = max_characters
        self._characters = 0

    def append(self, entry: LogEntry) -> None:
        self.entries.append(entry)
        self._characters += len(entry.text)
        while len(self.entries) > self._max_lines or self._characters > self._max_characters:
            self._characters -= len(self.entries.popleft().text)


class Logbook:
    """A bounded ring of lines a model; a slow follower misses the oldest ones, never stalls us."""

    def __init__(
        self,
        *,
        max_lines: int = 2000,
        max_characters: int = 1 << 20,
        max_behind: int = 1000,
        max_models: int = 10_000,
    ) -> None:
        self._max_lines = max_lines
        self._max_characters = max_characters
        self._max_behind = max_behind
        self._max_models = max_models
        self._rings: dict[ModelName, _Ring] = {}
        self._followers: dict[ModelName, set[_Follower]] = {}

    def append(self, model: ModelName, entry: LogEntry) -> None:
        """Adds a line, cut at MAX_TEXT characters, and wakes who follows."""
        if len(entry.text) > MAX_TEXT:
            entry = LogEntry(entry.at, entry.source, entry.text[:MAX_TEXT])
        ring = self._rings.get(model)
        if ring is None:
            ring = self._rings[model] = _Ring(self._max_lines, self._max_characters)
            if len(self._rings) > self._max_models:
                self._rings.pop(next(iter(self._rings)))
        ring.append(entry)
        for follower in self._followers.get(model, ()):
            follower.tell(entry)

    def last(self, model: ModelName, lines: int | None = None) -> tuple[LogEntry, ...]:
        """The newest `lines` lines (None: all that are kept), oldest first."""
        ring = self._rings.get(model)
        entries = () if ring is None else tuple(ring.entries)
        return entries if lines is None else entries[max(0, len(entries) - lines) :]

    async def follow(self, model: ModelName, *, last: int = 0) -> AsyncIterator[LogEntry]:
        """The newest `last` lines, then every line as it comes, until the caller closes it."""
        follower = _Follower(self._max_behind)
        for entry in self.last(model, last):
            follower.tell(entry)
        self._followers.setdefault(model, set()).add(follower)
        try:
            while True:
                yield await follower.next()
        finally:
            followers = self._followers[model]
            followers.discard(follower)
            if not followers:
                del self._followers[model]

    def forget(self, model: ModelName) -> None:
        """Drops a deleted model's lines; its followers simply hear nothing more."""
        self._rings.pop(model, None)


class _Follower:
    def __init__(self, max_behind: int) -> None:
        self._backlog: deque[LogEntry] = deque(maxlen=max_behind)
        self._has_news = asyncio.Event()

    def tell(self, entry: LogEntry) -> None:
        self._backlog.append(entry)
        self._has_news.set()

    async def next(self) -> LogEntry:
        while not self._backlog:
            self._has_news.clear()
            await self._has_news.wait()
        return self._backlog.popleft()
