"""Ranks as processes: they follow, and what happens to one ends in a typed error, not a wait."""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from infra.contracts.model_spec import EngineSettings
from infra.contracts.revision import ResolvedSource, SourceFile
from infra.errors import PlatformError, ReplicaFailed, SourceInvalid
from infra.sources.http_ranges import HttpRanges, Location
from infra.sources.patience import Patience
from infra.sources.port import Remote, WeightStream
from infra.sources.shared_files import SharedFiles
from infra.sources.stream import open_source
from tests.engine.tiny import greedy_alone, load_model, write_model
from tests.support.processes import running, runs, until
from tests.support.range_server import Asked, range_server
from worker.boot.followers import Part, ProcessFollowers
from worker.boot.ranks import Rank
from worker.models.config import read_config
from worker.models.led import LedModel
from worker.models.registry import build_model
from worker.node.child import spawn
from worker.parallel.group import TorchGroup
from worker.weights.loader import open_weights

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

SETTINGS = EngineSettings(tensor_parallel=2)
PROMPT = list(range(20, 60))
NAME = "model.safetensors"


def start(
    folder: Path, packed: Path, *, wait_s: float = 20.0, shared: SharedFiles | None = None
) -> ProcessFollowers:
    def part(rank: int, meeting: Path) -> Part:
        return Part(
            rank=rank,
            size=2,
            folder=folder,
            source=ResolvedSource(uri="file:///tiny", digest="sha256:0", files=()),
            shared=shared,
            packed=packed,
            engine=SETTINGS,
            gpus=0,
            threads=1,
            meeting=meeting,
            wait_s=wait_s,
        )

    ours, theirs = socket.socketpair()
    with theirs:
        pid = spawn(
            (sys.executable, "-c", RANK),
            dict(os.environ),  # noqa: TID251 - what children inherit
            descriptor=theirs.fileno(),
            output=os.devnull,
        )
    return ProcessFollowers.start([Rank(pid, ours)], part)


# A test has threads: a rank is not forked from it as it is from a worker.
RANK = """
import os
from worker.boot.process import begin
begin("fl-rank", parent=os.getppid())
from worker.boot.follower import run_follower
run_follower(3)
"""


@contextmanager
def led(
    folder: Path, packed: Path, *, wait_s: float = 20.0, stream: WeightStream | None = None
) -> Iterator[tuple[LedModel, ProcessFollowers, psutil.Process]]:
    """The model led from here, its followers, and the process of the one there is."""
    shared = None if stream is None else stream.shared
    followers = start(folder, packed, wait_s=wait_s, shared=shared)
    try:
        followers.until_loading()
        group = TorchGroup.join(followers.meeting, 0, 2, backend="gloo", wait_s=wait_s)
        weights = open_weights(folder, lambda _: None, reads_ahead=False, stream=stream)
        decoder = build_model(read_config(folder), weights, SETTINGS, group=group)
        followers.until_ready()
        [rank] = running(psutil.Process().children(), "fl-rank")
        yield LedModel(decoder, group, followers), followers, rank
    finally:
        followers.end()
        if dist.is_initialized():
            dist.destroy_process_group()


def test_ranks_share_weights_that_are_on_their_way(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "whole", torch_dtype="float32", vocab_size=8192)
    content = (whole / NAME).read_bytes()
    late = threading.Event()

    def held(asked: Asked) -> None:
        if asked.start > 0:
            late.wait()
        asked.answer()

    def release() -> None:
        until(a_child_follows, seconds=60, what="the other rank waits, too")
        late.set()

    with range_server() as server, ThreadPoolExecutor(1) as beside:
        server.files[NAME] = content
        server.always = held
        stream = streamed(whole, server.url, tmp_path / "cache")
        releasing = beside.submit(release)
        with led(whole, tmp_path / "packed", stream=stream) as (model, _, _):
            stream.finish()
            answer = greedy_alone(model, PROMPT, 30)
        releasing.result()
        given = sum(stop - start for start, stop in server.ranges(NAME))

    assert answer == greedy_alone(load_model(whole), PROMPT, 30)
    assert given == len(content)  # once for both


def streamed(model: Path, url: str, cache: Path) -> WeightStream:
    """The model's weights on their way from there, for several processes."""
    content = (model / NAME).read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    weights = SourceFile(path=NAME, size=len(content), digest=digest)
    source = ResolvedSource(uri="s3://b/m", digest="sha256:" + "0" * 64, files=(weights,))

    def bring(*_: object) -> None:
        raise AssertionError("there are no small files")

    def locate(file: SourceFile, *, again: bool) -> Location:
        return Location(f"{url}/{file.path}")

    patience = Patience(stall_s=600, hedge_s=600)
    remote = Remote(bring, lambda: HttpRanges(locate, patience), patience, lambda: "s3")
    opened = open_source(
        source, cache, remote, lambda _: None, lambda fraction: None, is_shared=True
    )
    assert opened.stream is not None
    return opened.stream


def a_child_follows() -> bool:
    with suppress(OSError):  # it may end meanwhile
        for child in psutil.Process().children():
            if ".arrived" in Path(f"/proc/{child.pid}/maps").read_text():
                return True
    return False


def test_a_rank_that_dies_instead_of_falling_asleep_is_named(folder: Path, tmp_path: Path) -> None:
    with led(folder, tmp_path) as (model, followers, rank):
        rank.suspend()
        model.to_host()
        rank.kill()
        with pytest.raises(ReplicaFailed, match="rank 1 of 2 was ended by SIGKILL"):
            followers.until_asleep()


def test_every_rank_keeps_what_it_packed(tmp_path: Path) -> None:
    """The next start of the same model finds each rank's part."""
    half = write_model(tmp_path / "half", torch_dtype="bfloat16")
    packed = tmp_path / "packed"
    with led(half, packed) as (_, _, rank):
        until(lambda: list(packed.rglob("*.safetensors")), seconds=100, what="rank 1 has packed")
    assert not rank.is_running()


def test_a_rank_that_dies_is_named_by_the_next_step(folder: Path, tmp_path: Path) -> None:
    """And to two threads that ask at once: the engine's, whose step broke off, and the event
    loop, which watches."""
    with (
        led(folder, tmp_path, wait_s=600) as (model, followers, rank),  # it would outlast the test
        ThreadPoolExecutor(2) as threads,
    ):
        [process] = followers._processes
        both_ask = threading.Barrier(3)

        def ask() -> str:
            both_ask.wait()
            return str(process.end_of_life())

        told = [threads.submit(ask) for _ in range(2)]
        both_ask.wait()
        rank.kill()

        assert [each.result() for each in told] == ["rank 1 of 2 was ended by SIGKILL"] * 2
        with pytest.raises(ReplicaFailed, match="rank 1 of 2 was ended by SIGKILL"):
            greedy_alone(model, PROMPT, 30)


async def test_the_death_of_an_idle_rank_is_told_and_named_by_the_next_step(
    folder: Path, tmp_path: Path
) -> None:
    with led(folder, tmp_path, wait_s=600) as (model, followers, rank):
        told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        followers.watch(told.set_result)
        rank.send_signal(signal.SIGSEGV)
        error = await asyncio.wait_for(told, 100)
        assert str(error) == "rank 1 of 2 was ended by SIGSEGV"
        with pytest.raises(ReplicaFailed, match="rank 1 of 2 was ended by SIGSEGV"):
            greedy_alone(model, PROMPT, 30)


def test_a_rank_that_dies_in_a_step_is_named_too(folder: Path, tmp_path: Path) -> None:
    """Whatever it was doing at that moment."""
    with led(folder, tmp_path) as (model, _, rank):
        threading.Timer(0.2, rank.kill).start()
        with pytest.raises(ReplicaFailed, match="rank 1 of 2 was ended by SIGKILL"):
            for _ in range(1000):
                greedy_alone(model, PROMPT, 30)


def test_a_rank_that_hangs_is_waited_for_so_long_and_no_longer(
    folder: Path, tmp_path: Path
) -> None:
    with led(folder, tmp_path, wait_s=2) as (model, _, rank):
        rank.suspend()
        began = time.monotonic()
        with pytest.raises(ReplicaFailed, match="rank 0 of 2 lost the others"):
            greedy_alone(model, PROMPT, 30)
        assert time.monotonic() - began > 1


def test_a_rank_that_dies_while_it_starts_is_named(folder: Path, tmp_path: Path) -> None:
    followers = start(folder, tmp_path)
    try:
        until(lambda: ranks() != [], seconds=100, what="the rank is there")
        [rank] = ranks()
        rank.kill()
        with pytest.raises(ReplicaFailed, match="rank 1 of 2 was ended by SIGKILL"):
            followers.until_loading()
    finally:
        followers.end()


def test_what_a_rank_cannot_load_is_told_as_what_it_is(folder: Path, tmp_path: Path) -> None:
    broken = write_model(tmp_path / "broken", torch_dtype="float32")
    (broken / "model.safetensors").write_bytes(b"nothing")
    followers = start(broken, tmp_path, wait_s=5)
    try:
        followers.until_loading()
        threading.Thread(
            target=TorchGroup.join,
            args=(followers.meeting, 0, 2),
            kwargs={"backend": "gloo", "wait_s": 5},
        ).start()
        with pytest.raises(SourceInvalid, match="rank 1 of 2"):
            followers.until_ready()
    finally:
        followers.end()
        if dist.is_initialized():
            dist.destroy_process_group()


def test_ranks_end_with_the_first_one(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEADER, str(folder), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        rank = psutil.Process(int(leader.stdout.readline()))
        leader.kill()
    until(lambda: not runs(rank), seconds=100, what="gone")


LEADER = """
import sys, time
from pathlib import Path
import psutil
from tests.parallel.test_followers import start
followers = start(Path(sys.argv[1]), Path(sys.argv[2]))
print(psutil.Process().children()[0].pid, flush=True)
followers.until_loading()
time.sleep(60)
"""


def test_a_meeting_that_nobody_comes_to_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Torch counts a group that failed, too: who comes after it would be waited for elsewhere.
    monkeypatch.setattr(dist.distributed_c10d._world, "group_count", 0)
    with pytest.raises(PlatformError, match="did not meet the others"):
        TorchGroup.join(tmp_path / "meeting", 0, 2, backend="gloo", wait_s=1)


def ranks() -> list[psutil.Process]:
    return running(psutil.Process().children(), "fl-rank")
