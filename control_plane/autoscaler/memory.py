"""What was learnt of each model is written behind and read at the start."""

import asyncio
import math
from collections import deque
from collections.abc import Collection
from statistics import median

from control_plane.autoscaler.experience import ASSUMED_SERVICE_S, Experience
from control_plane.autoscaler.experience_store import ExperienceStore, Learnt
from control_plane.autoscaler.keep_alive import KeepAlive
from infra.clock import Clock
from infra.contracts.base import ModelName
from infra.supervise import repeat

WRITE_EVERY_S = 2.0
OLDEST_S = 30 * 24 * 3600.0  # what was learnt longer ago says nothing of now
_MOST_AHEAD_S = 3600.0  # of our clock; beyond that it is no time
_TYPICAL_OF = 32  # notes, of whichever models
_MOST_WRITTEN = 500  # models at once: some hundred KiB


class Memory:
    """Notes are taken on the event loop and cost a table's entry; only `run` waits for the store.

    Up to WRITE_EVERY_S of what was learnt can be lost, and nothing but a few idle times with it.
    """

    def __init__(self, store: ExperienceStore, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._kept: dict[ModelName, Learnt] = {}
        self._unwritten: dict[ModelName, Experience] = {}
        self._forgotten: set[ModelName] = set()
        self._service_times: deque[float] = deque(maxlen=_TYPICAL_OF)
        self._writing = asyncio.Lock()  # guards the order of writes

    async def load(self) -> None:
        """Reads what is kept; raises StoreUnavailable, then what was read before holds."""
        self._kept = dict(await self._store.read())
        times = (it.service_s for it in self._kept.values())
        self._service_times.extend(it for it in times if it is not None)

    def recall(self, model: ModelName) -> Experience:
        """What was learnt of a model before this process; of one that is new, that its requests may
        take as long as those of others. What is not written yet is newer than what is kept."""
        if (noted := self._unwritten.get(model)) is not None:
            return noted.copy()
        learnt = self._kept.get(model)
        age_s = math.inf if learnt is None else self._clock.now() - learnt.at
        if learnt is None or not -_MOST_AHEAD_S <= age_s <= OLDEST_S:
            return Experience(assumed_service_s=self._typical_service_s())
        keep_alive = KeepAlive(
            learnt.idle_times, saved_s=math.inf if learnt.saved_s is None else learnt.saved_s
        )
        return Experience(
            keep_alive,
            climbs=learnt.climbs,
            waits=learnt.waits,
            service_s=learnt.service_s,
            assumed_service_s=self._typical_service_s(),
        )

    def _typical_service_s(self) -> float:
        return median(self._service_times) if self._service_times else ASSUMED_SERVICE_S

    def note(self, model: ModelName, experience: Experience) -> None:
        """Something was learnt of a model."""
        self._forgotten.discard(model)
        self._unwritten[model] = experience
        if experience.service_s is not None:
            self._service_times.append(experience.service_s)

    def forget(self, model: ModelName) -> None:
        """The model is gone."""
        self._kept.pop(model, None)
        self._unwritten.pop(model, None)
        self._forgotten.add(model)

    def forget_all_but(self, deployed: Collection[ModelName]) -> None:
        """Models may have gone while nobody was there to forget them."""
        for model in self._kept.keys() - deployed:
            self.forget(model)

    async def run(self) -> None:
        """Writes for ever; while the store is away it keeps what there is to write."""
        await repeat(self.write, every_s=WRITE_EVERY_S, on_failure="experience.unwritten")

    async def write(self) -> None:
        """Writes what was noted and not yet written; raises StoreUnavailable."""
        async with self._writing:
            while self._unwritten or self._forgotten:
                await self._write_some()

    async def _write_some(self) -> None:
        models = tuple(self._unwritten)[:_MOST_WRITTEN]
        noted = {model: self._unwritten.pop(model) for model in models}
        forgotten, self._forgotten = self._forgotten, set()
        now = self._clock.now()
        learnt = {model: _learnt(experience, now) for model, experience in noted.items()}
        try:
            await self._store.write(learnt, forgotten=forgotten)
        except BaseException:  # what came meanwhile is newer
            self._forgotten |= forgotten - self._unwritten.keys()
            gone = self._forgotten
            self._unwritten |= {
                model: it
                for model, it in noted.items()
                if model not in self._unwritten and model not in gone
            }
            raise


def _learnt(experience: Experience, now: float) -> Learnt:
    saved_s = experience.keep_alive.saved_s
    return Learnt(
        at=now,
        idle_times=tuple(round(it, 3) for it in experience.keep_alive.idle_times),
        saved_s=None if math.isinf(saved_s) else max(0.0, saved_s),
        climbs=experience.climbs,
        waits=experience.waits,
        service_s=experience.service_s,
    )
