"""Further processes of replicas that have ended: they hold GPUs until they are gone."""

from collections.abc import Callable
from functools import partial

from worker.node.child import Child, children
from worker.node.launcher import Exit

RANKS = frozenset({"fl-rank"})


class Orphans:
    """They become children of the agent, a subreaper, as their replica's process ends.

    `on_gone` is called with the process id of each.
    """

    def __init__(self, on_gone: Callable[[int], None]) -> None:
        self._on_gone = on_gone
        self._known: dict[int, Child] = {}

    def adopt(self) -> set[int]:
        """Those that have come since, killed: of a replica that ended now, or of several.

        Not those that came before, which a driver may hold up for ever.
        """
        came = {pid for pid in children(RANKS) if pid not in self._known}
        for pid in came:
            self._known[pid] = Child(pid, partial(self._ended, pid))
            self._known[pid].kill()
        return came

    def _ended(self, pid: int, end: Exit) -> None:
        del self._known[pid]
        self._on_gone(pid)
