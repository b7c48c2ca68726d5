"""Deployed models in Redis; every change is one script, so it happens wholly or not at all.

Keys (all in one hash slot):

* `{firstlight}:releases`           hash, model name → `<generation> <Record as JSON>`; it outlives
                                    the model
* `{firstlight}:revisions:<name>`   hash, number → RevisionDraft as JSON
* `{firstlight}:layout`             the number of this layout of keys

The first layout, before models had releases, had no number: its models were in
`{firstlight}:current`.
"""

from collections.abc import Iterable, Mapping

import structlog
from pydantic import ValidationError

from control_plane.deployments.record import Record
from control_plane.deployments.store import Kept, RevisionDraft, overtaken
from infra.contracts.base import ModelName
from infra.contracts.revision import Revision
from infra.errors import Conflict, StoreUnavailable
from infra.redis import Connection, store_errors

log = structlog.get_logger()

_RELEASES = "{firstlight}:releases"
_LAYOUT = "{firstlight}:layout"
_OF_LAYOUT_1 = "{firstlight}:current"
_OUR_LAYOUT = 2
_MODELS_A_TRIP = 100

# KEYS: releases, revisions · ARGV: name, generation before, record, numbers kept, number added,
# draft → 1, or 0 if the generation is another by now
_WRITE = """
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored == ARGV[3] then return 1 end
local generation = '0'
if stored then generation = string.match(stored, '^%d+') end
if generation ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[2], ARGV[5], ARGV[6]) end
local kept = {}
for number in string.gmatch(ARGV[4], '%d+') do kept[number] = true end
for _, number in ipairs(redis.call('HKEYS', KEYS[2])) do
  if not kept[number] then redis.call('HDEL', KEYS[2], number) end
end
return 1
"""


class RedisDeploymentStore:
    """The DeploymentStore that survives a restart."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis
        self._write = redis.register_script(_WRITE)

    async def load(self) -> tuple[Kept, ...]:
        with store_errors():
            await self._check_layout()
            stored = await self._redis.hgetall(_RELEASES)
            records = [_record_or_none(it) for _, it in sorted(stored.items())]  # by name
            deployed = [it for it in records if it is not None and it.is_deployed]
            kept: list[Kept] = []
            for start in range(0, len(deployed), _MODELS_A_TRIP):
                some = deployed[start : start + _MODELS_A_TRIP]
                wanted = {record.model: tuple(record.percents) for record in some}
                found = await self._drafts(wanted)
                kept += (Kept(it, _revisions(found[it.model])) for it in some)
        return tuple(it for it in kept if len(it.revisions) == len(it.record.percents))

    async def read(self, model: ModelName) -> Record:
        with store_errors():
            stored = await self._redis.hget(_RELEASES, model)
        if stored is None:
            return Record(model=model)
        record = _record_or_none(stored)
        if record is None:  # perhaps a later version's: what it says must not be lost
            raise StoreUnavailable(f"what is stored of model {model} cannot be read")
        return record

    async def revisions(self, record: Record, numbers: Iterable[int]) -> tuple[Revision, ...]:
        with store_errors():
            drafts = await self._drafts({record.model: tuple(numbers)})
        return _revisions(drafts[record.model])

    async def write(self, record: Record, added: RevisionDraft | None = None) -> None:
        with store_errors():
            is_written = await self._write(
                keys=[_RELEASES, _revisions_key(record.model)],
                args=[
                    record.model,
                    record.generation - 1,
                    f"{record.generation} {record.model_dump_json()}",
                    ",".join(map(str, record.digests)),
                    record.last_number,
                    "" if added is None else added.model_dump_json(),
                ],
            )
        if not is_written:
            raise overtaken(record.model)

    async def _check_layout(self) -> None:
        """What another version has put there must not look like nothing at all."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.exists(_OF_LAYOUT_1)
        pipeline.set(_LAYOUT, _OUR_LAYOUT, nx=True)
        pipeline.get(_LAYOUT)
        has_first, _, layout = await pipeline.execute()
        if has_first:
            raise Conflict(
                "the models in this store were deployed by an earlier version, which kept them in "
                f"{_OF_LAYOUT_1}; this one cannot read them",
                hint=f"delete {_OF_LAYOUT_1} in Redis, or choose another state folder, and deploy "
                "the models again",
            )
        if int(layout) != _OUR_LAYOUT:
            raise Conflict(
                f"the models in this store have layout {int(layout)}, this version reads layout "
                f"{_OUR_LAYOUT}",
                hint="run the version of the platform that deployed them",
            )

    async def _drafts(
        self, wanted: Mapping[ModelName, tuple[int, ...]]
    ) -> dict[ModelName, dict[int, bytes | None]]:
        """Drafts by model and number, in one trip."""
        asked = {model: numbers for model, numbers in wanted.items() if numbers}
        pipeline = self._redis.pipeline(transaction=False)
        for model, numbers in asked.items():
            pipeline.hmget(_revisions_key(model), [str(number) for number in numbers])
        answers = await pipeline.execute()
        found = {
            model: dict(zip(numbers, drafts, strict=True))
            for (model, numbers), drafts in zip(asked.items(), answers, strict=True)
        }
        return {model: found.get(model, {}) for model in wanted}


def _revisions_key(model: ModelName) -> str:
    return f"{{firstlight}}:revisions:{model}"


def _record_or_none(stored: bytes | str) -> Record | None:
    """A record that this version cannot read must not keep the others from being served."""
    text = stored if isinstance(stored, str) else stored.decode()
    try:
        return Record.model_validate_json(text.partition(" ")[2])
    except ValidationError:
        log.exception("release.unreadable", record=stored[:200])
        return None


def _revisions(drafts: Mapping[int, bytes | None]) -> tuple[Revision, ...]:
    found = (_revision_or_none(number, draft) for number, draft in drafts.items())
    return tuple(revision for revision in found if revision is not None)


def _revision_or_none(number: int, draft: bytes | None) -> Revision | None:
    if draft is None:
        return None
    try:
        return RevisionDraft.model_validate_json(draft).numbered(number)
    except ValidationError:
        log.exception("revision.unreadable", number=number, draft=draft[:200])
        return None
