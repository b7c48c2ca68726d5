"""A function in Redis and the connection it is called over."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.errors import StoreUnavailable
from infra.redis import EmbeddedRedis, connect
from infra.redis_function import RedisFunction

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]

SOURCE = """
local function run(keys, args)
  if args[1] == 'get' then return redis.call('GET', keys[1]) end
  if args[1] == 'fail' then return redis.error_reply('ERR it is so') end
  redis.call('SET', keys[1], args[2])
  return args[2]
end
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    async with EmbeddedRedis(tmp_path) as server:
        yield server


@pytest.fixture
async def function(server: EmbeddedRedis) -> AsyncIterator[RedisFunction]:
    function = RedisFunction(server.url, "test", SOURCE, "{k}", reply_s=0.5)
    yield function
    await function.close()


async def test_calls_share_a_connection_and_get_their_own_replies(function: RedisFunction):
    replies = await asyncio.gather(*(function(("set", f"v{number}")) for number in range(500)))
    assert replies == [b"v%d" % number for number in range(500)]


async def test_a_function_that_the_server_has_lost_is_loaded_again(
    server: EmbeddedRedis, function: RedisFunction
):
    await function(("set", "one"))
    redis = connect(server.url)
    await redis.execute_command("FUNCTION", "FLUSH")
    assert await function(("get",), reads=True) == b"one"
    await redis.aclose()


async def test_a_reading_call_may_not_write(function: RedisFunction):
    await function(("set", "one"))
    with pytest.raises(StoreUnavailable):
        await function(("set", "two"), reads=True)
    assert await function(("get",)) == b"one"


async def test_what_the_server_says_is_told(function: RedisFunction):
    with pytest.raises(StoreUnavailable, match="it is so") as told:
        await function(("fail",))
    assert told.value.hint is not None
    assert await function(("set", "one")) == b"one", "the connection goes on"


async def test_a_caller_that_leaves_does_not_take_the_reply_of_another(function: RedisFunction):
    calls = [asyncio.create_task(function(("set", f"v{number}"))) for number in range(20)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    kept = await asyncio.gather(*calls[1::2])
    assert kept == [b"v%d" % number for number in range(1, 20, 2)]


async def test_a_server_that_says_nothing_is_not_waited_for_for_ever(
    server: EmbeddedRedis, function: RedisFunction
):
    await function(("set", "one"))
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="no reply"):
            await function(("set", "two"))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await function(("set", "three")) == b"three"


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path):
    function = RedisFunction(f"unix://{tmp_path}/nothing.sock", "test", SOURCE, "{k}")
    with pytest.raises(StoreUnavailable):
        await function(("get",))


async def test_password_and_database_of_the_address_are_used(
    server: EmbeddedRedis, function: RedisFunction
):
    redis = connect(server.url)
    await redis.config_set("requirepass", "open sesame")
    wrong = RedisFunction(server.url, "test", SOURCE, "{k}")
    with pytest.raises(StoreUnavailable, match=r"NOAUTH|uthentication"):
        await wrong(("set", "x"))
    right = RedisFunction(f"{server.url}?password=open+sesame&db=3", "test", SOURCE, "{k}")
    assert await right(("set", "of three")) == b"of three"
    await redis.execute_command("SELECT", 3)
    assert await redis.get("{k}") == b"of three"
    for each in (wrong, right):
        await each.close()
    await redis.aclose()
