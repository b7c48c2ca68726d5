"""The gateway benchmark's own parts: its replica, its load, its verdicts."""

import asyncio
from dataclasses import replace

from benchmarks.gateway_peers import load
from benchmarks.gateway_peers.stand_in import TOKENS, StandIn
from benchmarks.gateway_peers.verdicts import (
    Figures,
    Parked,
    Slice,
    figures,
    verdicts,
)

NGINX = Figures(100e-6, 200e-6, 50_000, 20e-6, 10e-6, 7 << 20, 10 << 20, 0)
DIRECT = replace(NGINX, p50_s=20e-6)
OURS = replace(NGINX, p50_s=220e-6, request_cpu_s=50e-6, token_cpu_s=15e-6)
PARKED = Parked(2000, 0, 9e3, 0.25)


def words(ours: Figures, parked: Parked = PARKED) -> list[tuple[str, str]]:
    rows = {"direct": DIRECT, "nginx": NGINX, "firstlight": ours}
    return [(verdict.name, verdict.word) for verdict in verdicts(rows, parked)]


def test_at_the_targets_everything_is_met_and_a_missing_peer_is_said() -> None:
    assert words(OURS) == [
        ("added p50 / nginx", "met"),
        ("requests/s/core / nginx", "met"),
        ("CPU per token / nginx", "met"),
        ("against vllm-router", "not measured"),
        ("memory, MB", "met"),
        ("parked request, KB", "met"),
        ("of 2000 parked: failed", "met"),
        ("last answer after READY, s", "met"),
    ]


def test_beyond_the_targets_each_is_not_met() -> None:
    slow = Figures(230e-6, 1e-3, 1, 51e-6, 16e-6, 1 << 30, 1 << 30, 0)
    seen = words(slow, Parked(2000, 1, 11e3, 0.4))

    assert {word for name, word in seen if "vllm" not in name} == {"NOT MET"}


def test_a_turn_that_met_a_busy_machine_decides_nothing() -> None:
    quiet = Slice([1e-3] * 100, 20_000, 40e-6, 20e-6, 0)
    busy = Slice([9e-3] * 100, 5_000, 90e-6, 50e-6, 1)

    seen = figures([quiet, busy, quiet], 1, 2)

    assert seen == Figures(1e-3, 9e-3, 20_000, 40e-6, 20e-6, 1, 2, 1)


async def test_the_load_counts_answers_and_tokens_of_the_stand_in() -> None:
    loop = asyncio.get_running_loop()
    async with await loop.create_server(StandIn, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        whole = await load.run(port, load.request(port, "key"), connections=3, rounds=5)
        streams = await load.run(
            port, load.request(port, "key", is_streaming=True), connections=2, rounds=1
        )

    assert (whole.answered, whole.failed, whole.events) == (15, 0, 0)
    assert (streams.answered, streams.failed, streams.events) == (2, 0, 2 * TOKENS)
    assert min(streams.seconds) > 0.9
    assert whole.quantile(0.5) <= whole.quantile(1.0)


async def test_the_load_counts_what_is_refused_or_cut() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno")
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        seen = await load.run(port, load.request(port, "key"), connections=1, rounds=3)

    assert (seen.answered, seen.failed) == (0, 2)
    assert seen.first_failure.startswith(b"HTTP/1.1 503")
