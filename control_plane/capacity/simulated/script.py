"""What becomes of a replica on a simulated machine."""

from collections.abc import Callable
from dataclasses import dataclass

from infra.contracts.node import Failure, ReplicaAssignment
from infra.contracts.stage import Stage


@dataclass(frozen=True, slots=True)
class Climbing:
    """One stage of a simulated climb; `steps` progress reports on its way."""

    stage: Stage
    seconds: float
    steps: int = 4
    bytes: int | None = None
    source: str | None = "simulated"


@dataclass(frozen=True, slots=True)
class Script:
    """What becomes of one replica.

    It climbs `stages`; at the end of `fails_after` stages it fails with `failure`, or dies
    without a word when there is none (None: it gets READY). `hangs` stays in that stage for
    ever. READY it lives `lives_s` (None: until told otherwise) and takes `drain_s` to drain.
    """

    stages: tuple[Climbing, ...] = (
        Climbing(Stage.RUNTIME, 0.02),
        Climbing(Stage.WEIGHTS, 0.2, bytes=270_000_000),
        Climbing(Stage.ENGINE, 0.05),
    )
    fails_after: int | None = None
    failure: Failure | None = None
    hangs: bool = False
    lives_s: float | None = None
    drain_s: float = 0.0


Scripts = Callable[[ReplicaAssignment], Script]
