"""How a container ended, from all that is known of it: pure."""

import signal

from infra.errors import ReplicaOutOfMemory
from worker.node.launcher import Exit

_SIGNALS = frozenset(signal.Signals)
_LONGEST = 500


def exit_of(status: int) -> Exit:
    """From the exit status that containerd tells: 128 more than a signal's number, as shells do."""
    return Exit(128 - status) if status - 128 in _SIGNALS else Exit(status)


def explained(
    end: Exit, status: int | None, *, kills: int, memory_bytes: int | None, said: str
) -> Exit:
    """`end` as far as the agent knows it, and

    1. the reason that the agent has itself, where there is one;
    2. else the memory limit, where the kernel killed for it and the end was not an orderly one;
    3. else what SIGBUS means to a program that maps files;
    4. else the exit status; None: the runtime is away.

    `said` is the last line of a worker that nobody has heard on its link.
    """
    if end.why is not None:
        return end
    if kills and status != 0:
        limit = "there was" if memory_bytes is None else f"its {memory_bytes >> 20} MiB"
        why = f"killed by SIGKILL: it needed more memory than {limit}"
        return Exit(-signal.SIGKILL, why, code=ReplicaOutOfMemory.slug)
    end = end if status is None else exit_of(status)
    if end.status == -signal.SIGBUS:
        why = "a page of its image or its model could not be read, or shared memory was full"
        return Exit(end.status, f"{end}: {why}")
    return Exit(end.status, f"{end}; it said: {said[:_LONGEST]}") if said else end
