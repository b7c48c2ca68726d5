"""Deployed models in Redis; every change is one script, so it happens wholly or not at all.

Keys (all in one hash slot):

* `{firstlight}:current`        hash, model name → record of the revision requests go to
* `{firstlight}:model:<name>`   hash, `d:<digest>` → record; `last` → the highest number given out,
                                which outlives the model

A record is `<number> <RevisionDraft as JSON>`.
"""

import structlog
from pydantic import ValidationError

from control_plane.deployments.store import Change, RevisionDraft
from infra.contracts.base import ModelName
from infra.contracts.revision import Revision
from infra.redis import Connection, store_errors

log = structlog.get_logger()

_CURRENT = "{firstlight}:current"

# KEYS: current, model · ARGV: name, digest, draft → {record before or false, record after}
_PUBLISH = """
local before = redis.call('HGET', KEYS[1], ARGV[1])
local after = redis.call('HGET', KEYS[2], 'd:' .. ARGV[2])
if not after then
  local number = redis.call('HINCRBY', KEYS[2], 'last', 1)
  after = string.format('%d', number) .. ' ' .. ARGV[3]
  redis.call('HSET', KEYS[2], 'd:' .. ARGV[2], after)
end
redis.call('HSET', KEYS[1], ARGV[1], after)
return {before, after}
"""

# KEYS: current, model · ARGV: name → record before or false
_RETIRE = """
local before = redis.call('HGET', KEYS[1], ARGV[1])
local last = redis.call('HGET', KEYS[2], 'last')
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
if last then redis.call('HSET', KEYS[2], 'last', last) end
return before
"""


class RedisDeploymentStore:
    """The DeploymentStore that survives a restart."""

    def __init__(self, redis: Connection) -> None:
        self._redis = redis
        self._publish = redis.register_script(_PUBLISH)
        self._retire = redis.register_script(_RETIRE)

    async def publish(self, draft: RevisionDraft) -> Change:
        with store_errors():
            before, after = await self._publish(
                keys=[_CURRENT, _model_key(draft.model)],
                args=[draft.model, draft.digest, draft.model_dump_json()],
            )
        return Change(draft.model, _revision_or_none(before), _revision(after))

    async def retire(self, model: ModelName) -> Change:
        with store_errors():
            before = await self._retire(keys=[_CURRENT, _model_key(model)], args=[model])
        return Change(model, _revision_or_none(before), None)

    async def current(self) -> tuple[Revision, ...]:
        with store_errors():
            records = await self._redis.hgetall(_CURRENT)
        revisions = (_revision_or_none(record) for _, record in sorted(records.items()))  # by name
        return tuple(revision for revision in revisions if revision is not None)


def _model_key(model: ModelName) -> str:
    return f"{{firstlight}}:model:{model}"


def _revision(record: bytes | str) -> Revision:
    text = record if isinstance(record, str) else record.decode()
    number, _, draft = text.partition(" ")
    return RevisionDraft.model_validate_json(draft).numbered(int(number))


def _revision_or_none(record: bytes | str | None) -> Revision | None:
    """A record that this version cannot read must not keep the others from being served."""
    if record is None:
        return None
    try:
        return _revision(record)
    except (ValidationError, ValueError):
        log.exception("revision.unreadable", record=record[:200])
        return None
