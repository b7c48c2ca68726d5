"""What goes wrong and when, drawn from a seed; pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Victim = Literal["platform", "redis", "fl-node", "fl-replica", "fl-zygote"]


class Kind(StrEnum):
    """How something goes wrong."""

    KILL = "kill -9"
    KILL_TWICE = "kill -9, and again as it starts,"
    TERM = "SIGTERM"
    STALL = "SIGSTOP"
    OUT_OF_MEMORY = "OOM"  # Redis refuses writes, and so do the next two
    READ_ONLY = "READONLY"
    NO_SNAPSHOTS = "MISCONF"
    DISK_FULL = "disk full"  # of the state folder, with Redis and all logs in it


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong; `holds_s` until it is undone, where it does not undo itself."""

    kind: Kind
    victim: Victim
    holds_s: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.holds_s:.1f} s" if self.holds_s else ""
        return f"{self.kind} of {self.victim}{lasts}"


_WEIGHTS: dict[tuple[Kind, Victim], int] = {
    (Kind.KILL, "platform"): 3,
    (Kind.KILL_TWICE, "platform"): 2,
    (Kind.KILL, "redis"): 3,
    (Kind.KILL, "fl-node"): 3,
    (Kind.KILL, "fl-replica"): 5,
    (Kind.KILL, "fl-zygote"): 2,
    (Kind.TERM, "platform"): 2,
    (Kind.TERM, "redis"): 1,
    (Kind.TERM, "fl-node"): 1,
    (Kind.TERM, "fl-replica"): 1,
    (Kind.STALL, "platform"): 1,
    (Kind.STALL, "redis"): 2,
    (Kind.STALL, "fl-node"): 2,
    (Kind.STALL, "fl-replica"): 2,
    (Kind.STALL, "fl-zygote"): 1,
    (Kind.OUT_OF_MEMORY, "redis"): 1,
    (Kind.READ_ONLY, "redis"): 1,
    (Kind.NO_SNAPSHOTS, "redis"): 1,
    (Kind.DISK_FULL, "redis"): 1,
}
_LEASE_S = 10.0  # a node that is silent for longer is given up
_SOON_S, _LATE_S = 0.3, 4.0
_AT_ONCE = 0.2  # of the faults come with the one before


def faults(seed: int) -> Iterator[tuple[float, Fault]]:
    """Seconds of peace, and what then happens, without end; the same for the same seed."""
    dice = random.Random(seed)
    while True:
        [(kind, victim)] = dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        peace_s = 0.0 if dice.random() < _AT_ONCE else dice.uniform(_SOON_S, _LATE_S)
        yield peace_s, Fault(kind, victim, _holds_s(kind, victim, dice))


def _holds_s(kind: Kind, victim: Victim, dice: random.Random) -> float:
    match kind:
        case Kind.KILL | Kind.TERM:
            return 0.0
        case Kind.KILL_TWICE:
            return dice.uniform(0.2, 2.0)
        case Kind.STALL if victim == "fl-node" and dice.random() < 0.3:
            return _LEASE_S + 3
        case _:
            return dice.uniform(0.5, 6.0)
