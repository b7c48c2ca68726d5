"""A cloud in memory, for tests: a machine's metadata, and a group that hears its words."""

from dataclasses import dataclass, field

from worker.node.cloud.port import (
    Hook,
    HooksUnavailable,
    Instance,
    MetadataUnavailable,
    NobodyWaits,
    Notice,
    Target,
)


@dataclass
class FakeCloud:
    """Metadata and hooks of one machine; `waits_for` is what the group waits for now."""

    goes_to: Target | None = Target.SERVE
    waits_for: Hook | None = Hook.LAUNCHING
    noticed: Notice | None = None
    is_down: bool = False
    heartbeats: list[Hook] = field(default_factory=list)
    completed: list[Hook] = field(default_factory=list)

    async def instance(self) -> Instance:
        self._answer_unless_down()
        return Instance("i-1", "eu-north-1")

    async def target(self) -> Target | None:
        self._answer_unless_down()
        return self.goes_to

    async def notice(self) -> Notice | None:
        self._answer_unless_down()
        return self.noticed

    def close(self) -> None:
        """Nothing to close."""

    async def heartbeat(self, hook: Hook) -> None:
        self._check(hook)
        self.heartbeats.append(hook)

    async def complete(self, hook: Hook) -> None:
        self._check(hook)
        self.completed.append(hook)
        self.waits_for = None

    def _check(self, hook: Hook) -> None:
        if self.is_down:
            raise HooksUnavailable("throttled")
        if hook is not self.waits_for:
            raise NobodyWaits(hook)

    def _answer_unless_down(self) -> None:
        if self.is_down:
            raise MetadataUnavailable("no answer")
