"""Further processes for a model that several compute, forked before this one has a thread."""

import os
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from infra.tether import die_with_parent
from worker.boot.process import leave, name_process


@dataclass(frozen=True, slots=True)
class Rank:
    """A child that waits for its part of a model, and our end of the link to it."""

    pid: int
    link: socket.socket


def fork_ranks(
    count: int, run: Callable[[int], NoReturn], *, closes: Sequence[int]
) -> tuple[Rank, ...]:
    """Children of this process, of one thread as it has to be, that die with it.

    Each runs `run` with its end of a link, and closes the descriptors that are this process's
    alone: another holder would keep its links open when it ends.
    """
    ranks: list[Rank] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _be_a_rank(run, theirs.detach(), [ours, *(rank.link for rank in ranks)], closes)
        theirs.close()
        ranks.append(Rank(pid, ours))
    return tuple(ranks)


def _be_a_rank(
    run: Callable[[int], NoReturn],
    link: int,
    not_ours: Sequence[socket.socket],
    closes: Sequence[int],
) -> NoReturn:
    try:
        die_with_parent()
        for other in not_ours:
            other.close()
        for descriptor in closes:
            os.close(descriptor)
        name_process("fl-rank")
        run(link)  # had its parent ended before the tether: the link is closed
    except BaseException:
        traceback.print_exc()
    leave(1)
