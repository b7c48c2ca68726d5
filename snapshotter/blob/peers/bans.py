"""Which peers are not asked for now; pure, with time as an argument. Not thread-safe."""

from typing import Final

from infra.backoff import Backoff

_LIED_S: Final = 600.0
_FAILURES: Final = Backoff(first_s=1.0, most_s=60.0)


class Bans:
    """A peer that gave wrong bytes is left alone for long, one that failed for a while."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def is_banned(self, node_id: str, now: float) -> bool:
        return now < self._until.get(node_id, now)

    def lied(self, node_id: str, now: float) -> None:
        """It gave other bytes than those that were asked for."""
        self._until[node_id] = now + _LIED_S

    def failed(self, node_id: str, now: float) -> None:
        """It did not answer, or not in time."""
        failures = self._failures[node_id] = self._failures.get(node_id, 0) + 1
        until = now + _FAILURES.delay_s(failures)
        self._until[node_id] = max(until, self._until.get(node_id, until))

    def answered(self, node_id: str) -> None:
        """It gave what was asked for."""
        self._failures.pop(node_id, None)

    def forget_but(self, node_ids: set[str], now: float) -> None:
        """Drops what is known of nodes that are gone and not banned."""
        for node_id in [*self._until, *self._failures]:
            if node_id not in node_ids and not self.is_banned(node_id, now):
                self._until.pop(node_id, None)
                self._failures.pop(node_id, None)
