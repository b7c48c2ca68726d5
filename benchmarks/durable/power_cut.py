"""A power cut: the file system under Redis is shut down, and what is pending never written."""

import asyncio
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from control_plane.queue.acceptance import Acceptance
from control_plane.queue.job import Job
from control_plane.queue.order import NewJob, Order, Terms
from control_plane.queue.redis_store import RedisJobStore, job_function
from control_plane.queue.store import Policy
from infra.clock import SystemClock
from infra.contracts.base import RequestId
from infra.redis import EmbeddedRedis
from infra.supervise import TaskSet
from tests.queue.makers import BODY, CHAT, NOBODY

CONCURRENCY = 16
IMAGE_BYTES = 256 << 20

_EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs/ext4/ext4.h
_ORDER = Order(
    *(NOBODY, CHAT, NOBODY, "/invoke", RequestId("req_1"), BODY),
    Terms(deadline_s=3600, max_attempts=3),
)
_Outcome = NewJob | Job | Exception
_NO_LOG_FLUSH = (2).to_bytes(4, "little")


class NotPermitted(Exception):
    """This machine lets us mount nothing, or its kernel cannot be told to drop a file system."""


async def cut(*, after_s: float) -> tuple[int, int]:
    """Accepts jobs, cuts the power; returns how many were accepted and how many of them are lost.

    Raises NotPermitted.
    """
    with tempfile.TemporaryDirectory(prefix="firstlight-cut-") as folder:
        image, mount = Path(folder) / "image", Path(folder) / "mount"
        mount.mkdir()
        _make_image(image)
        accepted: list[NewJob] = []
        with _mounted(image, mount):
            await _accept_until_cut(mount, accepted, after_s)
        with _mounted(image, mount):
            lost = await _lost(mount, accepted)
        return len(accepted), lost


async def _accept_until_cut(mount: Path, accepted: list[NewJob], after_s: float) -> None:
    tasks = TaskSet()
    async with EmbeddedRedis(mount / "redis") as server:
        script = job_function(server.url, Policy())
        clock = SystemClock.start()
        acceptance = Acceptance(RedisJobStore(script), clock=clock, waits=lambda model: None)
        for number in range(CONCURRENCY):
            tasks.start(_leave_jobs(acceptance, accepted), name=f"client {number}")
        await asyncio.sleep(after_s)
        _shut_down(mount)
        if server.pid is not None:
            os.kill(server.pid, 9)
        await tasks.close()
        await script.close()


async def _leave_jobs(acceptance: Acceptance, accepted: list[NewJob]) -> None:
    """One after the other, as a request does, until the store is away."""
    loop = asyncio.get_running_loop()
    while True:
        told: asyncio.Future[_Outcome] = loop.create_future()
        acceptance.accept(_ORDER, partial(_tell, told))
        outcome = await told
        if not isinstance(outcome, NewJob):
            return
        accepted.append(outcome)


def _tell(told: "asyncio.Future[_Outcome]", outcome: _Outcome) -> None:
    if not told.done():  # else who asked was ended with the power
        told.set_result(outcome)


async def _lost(mount: Path, accepted: list[NewJob]) -> int:
    async with EmbeddedRedis(mount / "redis") as server:
        script = job_function(server.url, Policy())
        store = RedisJobStore(script)
        found = [await store.get(job.job_id, tenant=NOBODY) for job in accepted]
        await script.close()
        return sum(job is None for job in found)


def _make_image(image: Path) -> None:
    if shutil.which("mkfs.ext4") is None or os.geteuid() != 0:
        raise NotPermitted("it takes root and mkfs.ext4")
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)


@contextmanager
def _mounted(image: Path, mount: Path) -> Iterator[None]:
    done = subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True, check=False)
    if done.returncode != 0:
        raise NotPermitted(done.stderr.decode().strip())
    try:
        yield
    finally:
        subprocess.run(["umount", mount], check=True)


def _shut_down(mount: Path) -> None:
    """Nothing that is not on the disk yet will ever be."""
    descriptor = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, _NO_LOG_FLUSH)
    except OSError as error:
        raise NotPermitted(f"the file system cannot be shut down: {error.strerror}") from error
    finally:
        os.close(descriptor)
