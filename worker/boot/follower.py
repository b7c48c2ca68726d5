"""The life of a rank that follows: it loads its part, then does as the first one says."""

import os
import socket
import threading
import traceback
from typing import NoReturn

from infra.clock import SystemClock
from infra.errors import PlatformError, ReplicaFailed
from infra.sources.shared_stream import FollowedStream
from worker.boot.failure import failure_of
from worker.boot.followers import LONGEST_REPLY, Part, Reply
from worker.boot.model_files import ModelFiles
from worker.boot.process import LOWEST_PRIORITY, give_memory_back, leave
from worker.boot.visible_gpu import see_only
from worker.engine.preload import after_fork
from worker.models.decoder import Decoder
from worker.models.led import follow
from worker.models.orders import Rest, orders
from worker.parallel.group import Group, TorchGroup, backend_for
from worker.weights.packed_store import PackedStore

FAILED, ORPHANED = 1, 3


def run_follower(descriptor: int) -> NoReturn:
    """Serves the first rank on the inherited socket until that closes it."""
    link = socket.socket(fileno=descriptor)
    part = Part.model_validate_json(_first_line(link))
    see_only(part.gpu_ids)
    _say(link, Reply())
    try:
        files, decoder, group = _part_of_model(part)
    except Exception as error:
        if not isinstance(error, PlatformError):
            traceback.print_exc()
        _say(link, Reply(failure=failure_of(error)))
        leave(FAILED)
    _say(link, Reply())
    keeping = threading.Thread(target=_keep_packed, args=(files,), daemon=True)
    keeping.start()
    cache = None
    try:
        for order in orders(link):
            cache = follow(decoder, group, order, cache)
            if isinstance(order, Rest) and order.is_asleep:
                give_memory_back()
                _say(link, Reply())
    except ReplicaFailed:  # the first rank knows who was lost, and says it
        leave(FAILED)
    except BaseException:
        traceback.print_exc()
        leave(FAILED)
    leave(ORPHANED)


def _part_of_model(part: Part) -> tuple[ModelFiles, Decoder, Group]:
    after_fork(part.threads)
    group = TorchGroup.join(
        part.meeting,
        part.rank,
        part.size,
        backend=backend_for(part.gpus),
        wait_s=part.wait_s,
    )
    files = ModelFiles.open(
        part.folder,
        part.source,
        part.engine,
        PackedStore(part.packed),
        lambda fraction: None,
        gpus=part.gpus,
        rank=part.rank,
        stream=None if part.shared is None else FollowedStream(part.shared),
    )
    return files, files.build(gpus=part.gpus, group=group), group


def _keep_packed(files: ModelFiles) -> None:
    """For the next replica, beside what this one computes."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
    files.settle(now=SystemClock.start().now())


def _first_line(link: socket.socket) -> bytes:
    """The part; the first rank's output, which comes with it, is this one's too from now on."""
    line = b""
    while not line.endswith(b"\n"):
        received, outputs, _, _ = socket.recv_fds(link, LONGEST_REPLY, 1)
        for output in outputs:
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
        if not received:
            leave(ORPHANED)
        line += received
    return line


def _say(link: socket.socket, reply: Reply) -> None:
    try:
        link.sendall(reply.model_dump_json().encode() + b"\n")
    except OSError:
        leave(ORPHANED)
