"""The directory in Redis.

Keys:
  peers:<blob digest>   hash: node id -> "<seen, unix ms of Redis> <Peer as text>"; the key ends two
                        lifetimes after its last announcement, a node after one
  fetches:<blob digest>:<stripe>   <Peer as text>: who fetches it from the origin; for CLAIM_S

One script announces and reads, so a beat is one round trip, and Redis is the only clock. Another
claims a stripe, or says who has.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

from redis import Redis
from redis.exceptions import RedisError

from infra.errors import StoreUnavailable
from snapshotter.blob.peers.directory import CLAIM_S, MOST_PEERS, Announcement, Peers
from snapshotter.blob.peers.peer import Peer

_EXCHANGE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local node, ttl, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = {}
for i, key in ipairs(KEYS) do
  redis.call('HSET', key, node, string.format('%.0f', now) .. ' ' .. ARGV[3 + i])
  redis.call('PEXPIRE', key, 2 * ttl)
  local all, others = redis.call('HGETALL', key), {}
  for j = 1, #all, 2 do
    local seen, peer = string.match(all[j + 1], '^(%d+) (.*)$')
    if not seen or now - tonumber(seen) >= ttl then
      redis.call('HDEL', key, all[j])
    elseif all[j] ~= node and #others < most then
      others[#others + 1] = peer
    end
  end
  answer[i] = others
end
return answer
"""

_LEAVE: Final = """
for _, key in ipairs(KEYS) do redis.call('HDEL', key, ARGV[1]) end
"""


_CLAIM: Final = """
local holder = redis.call('GET', KEYS[1])
if holder and (ARGV[2] == '' or string.match(holder, ' ([^ ]*)$') ~= ARGV[2]) then
  return holder
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
"""

_CLAIM_TIMEOUT_S: Final = 0.1  # a read waits for it


class RedisDirectory:
    """`url` as for `infra.redis.connect`; every call ends within two seconds."""

    def __init__(self, url: str, *, ttl_s: float = 15.0, socket_timeout_s: float = 1.0) -> None:
        self._redis = _client(url, socket_timeout_s)
        self._hasty = _client(url, min(socket_timeout_s, _CLAIM_TIMEOUT_S))
        self._ttl_ms = round(ttl_s * 1000)
        self._exchange = self._redis.register_script(_EXCHANGE)
        self._leave = self._redis.register_script(_LEAVE)
        self._claim = self._hasty.register_script(_CLAIM)

    def exchange(self, announcement: Announcement) -> Peers:
        shared = announcement.blobs
        if not shared:
            return {}
        own = (
            str(Peer(announcement.node_id, announcement.address, can_fetch))
            for can_fetch in shared.values()
        )
        head = (announcement.node_id, self._ttl_ms, MOST_PEERS)
        answer = self._run(self._exchange, keys=_keys(shared), args=(*head, *own))
        rows = cast(list[list[bytes]], answer)
        return {blob: _parsed(row) for blob, row in zip(shared, rows, strict=True)}

    def leave(self, announcement: Announcement) -> None:
        if announcement.blobs:
            self._run(self._leave, keys=_keys(announcement.blobs), args=(announcement.node_id,))

    def claim(self, blob: str, stripe: int, peer: Peer, *, instead_of: str | None) -> Peer:
        holder = self._run(
            self._claim,
            keys=[f"fetches:{blob}:{stripe}"],
            args=(str(peer), instead_of or "", round(CLAIM_S * 1000)),
        )
        return Peer.parse(cast(bytes, holder).decode(errors="replace")) or peer

    def close(self) -> None:
        self._redis.close()
        self._hasty.close()

    def _run(self, script: Any, **arguments: Any) -> Any:
        try:
            return script(**arguments)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the directory of peers does not answer: {error}") from error


def _client(url: str, timeout_s: float) -> Redis:
    return Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)


def _keys(blobs: Mapping[str, bool]) -> list[str]:
    return [f"peers:{blob}" for blob in blobs]


def _parsed(row: list[bytes]) -> tuple[Peer, ...]:
    peers = (Peer.parse(text.decode(errors="replace")) for text in row)
    return tuple(peer for peer in peers if peer is not None)
