"""Containers without a runtime, for tests: processes that sleep."""

import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.contracts.stage import Moved
from worker.node.container.containers import ContainerFailed
from worker.node.container.image import Image

KILLED = 137  # as runtimes tell it


@dataclass
class FakeContainers:
    """See the port. A start waits for `may_start`; `refuses` says why there is none."""

    refuses: str | None = None
    left: list[str] = field(default_factory=list)
    alive: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    specs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ready: list[str] = field(default_factory=list)
    moved: Moved | None = None  # what every container has read
    removed: list[str] = field(default_factory=list)
    is_starting: threading.Event = field(default_factory=threading.Event)
    may_start: threading.Event = field(default_factory=threading.Event)

    def start(self, name: str, image: Image, spec: dict[str, Any], *, output: Path) -> int:
        self.is_starting.set()
        self.may_start.wait()
        if self.refuses is not None:
            raise ContainerFailed(self.refuses)
        self.specs[name] = spec
        self.alive[name] = subprocess.Popen(["sleep", "600"])
        return self.alive[name].pid

    def read(self, name: str) -> Moved | None:
        if self.refuses is not None:
            raise ContainerFailed(self.refuses)
        return self.moved

    def started(self, name: str) -> None:
        self.ready.append(name)

    def remove(self, name: str) -> int | None:
        self.removed.append(name)
        if name in self.left:
            self.left.remove(name)
        process = self.alive.pop(name, None)
        if process is None:
            return None
        process.kill()
        process.wait()  # who watches it may have been faster, and have its status
        return KILLED

    def left_behind(self) -> tuple[str, ...]:
        return tuple(self.left)
