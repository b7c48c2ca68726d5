"""The life of a rank that follows: it loads its part, then does as the first one says."""

import socket
import traceback
from typing import NoReturn

from infra.errors import PlatformError, ReplicaFailed
from worker.boot.failure import failure_of
from worker.boot.followers import LONGEST_REPLY, Part, Reply
from worker.boot.process import leave
from worker.engine.preload import after_fork
from worker.models.config import read_config
from worker.models.decoder import Decoder
from worker.models.led import follow
from worker.models.orders import orders
from worker.models.registry import build_model, open_pack
from worker.parallel.group import Group, TorchGroup, backend_for
from worker.weights.loader import open_weights
from worker.weights.packed_store import PackedStore

FAILED, ORPHANED = 1, 3


def run_follower(descriptor: int) -> NoReturn:
    """Serves the first rank on the inherited socket until that closes it."""
    link = socket.socket(fileno=descriptor)
    part = Part.model_validate_json(_first_line(link))
    _say(link, Reply())
    try:
        decoder, group = _part_of_model(part)
    except Exception as error:
        if not isinstance(error, PlatformError):
            traceback.print_exc()
        _say(link, Reply(failure=failure_of(error)))
        leave(FAILED)
    _say(link, Reply())
    cache = None
    try:
        for order in orders(link):
            cache = follow(decoder, group, order, cache)
    except ReplicaFailed:  # the first rank knows who was lost, and says it
        leave(FAILED)
    except BaseException:
        traceback.print_exc()
        leave(FAILED)
    leave(ORPHANED)


def _part_of_model(part: Part) -> tuple[Decoder, Group]:
    after_fork(part.threads)
    config = read_config(part.folder)
    group = TorchGroup.join(
        part.meeting,
        part.rank,
        part.size,
        backend=backend_for(part.gpus),
        wait_s=part.wait_s,
    )
    pack = open_pack(
        config,
        part.engine,
        PackedStore(part.packed),
        source_digest=part.source_digest,
        gpus=part.gpus,
        rank=part.rank,
    )
    weights = open_weights(part.folder, lambda fraction: None, reads_ahead=False)
    return build_model(config, weights, part.engine, gpus=part.gpus, group=group, pack=pack), group


def _first_line(link: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        received = link.recv(LONGEST_REPLY)
        if not received:
            leave(ORPHANED)
        line += received
    return line


def _say(link: socket.socket, reply: Reply) -> None:
    try:
        link.sendall(reply.model_dump_json().encode() + b"\n")
    except OSError:
        leave(ORPHANED)
