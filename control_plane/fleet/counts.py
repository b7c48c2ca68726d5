"""How many replicas there are, by what they do."""

from collections.abc import Iterable
from typing import NamedTuple

from control_plane.fleet.replica import Replica
from infra.contracts.revision import ReplicaState


class Counts(NamedTuple):
    """Of replicas that have not ended."""

    ready: int = 0
    loading: int = 0
    draining: int = 0

    @property
    def all(self) -> int:
        return self.ready + self.loading + self.draining

    def moved(self, before: Replica | None, after: Replica) -> "Counts":
        """The counts after a replica has changed."""
        return self._with(before, -1)._with(after, 1)

    def _with(self, replica: Replica | None, more: int) -> "Counts":
        if replica is None or replica.is_over:
            return self
        if replica.is_loading:
            return self._replace(loading=self.loading + more)
        if replica.state is ReplicaState.READY:
            return self._replace(ready=self.ready + more)
        return self._replace(draining=self.draining + more)


NONE = Counts()


def count(replicas: Iterable[Replica]) -> Counts:
    """The counts of these."""
    counted = NONE
    for replica in replicas:
        counted = counted.moved(None, replica)
    return counted
