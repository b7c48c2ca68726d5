"""What a process of ours does to itself: its name, its output, its tether, its end."""

import ctypes
import faulthandler
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from infra.tether import die_with_parent

LOWEST_PRIORITY = 19  # see setpriority(2)
_PR_SET_NAME = 15


def name_process(name: str) -> None:
    """The name that `ps` and `top` show, of at most 15 bytes (prctl(2)); no-op where not Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def begin(name: str, *, parent: int | None) -> None:
    """A child of the agent: named, killed when the agent ends, deaf to the terminal's Ctrl-C.

    In a container nobody is its parent (None), and the end of its link is all that it hears.
    """
    name_process(name)
    if parent is not None:
        die_with_parent()
        if os.getppid() != parent:  # it ended before we were tethered
            leave(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def redirect_output(path: str) -> None:
    """File descriptors 1 and 2 append to that file from now on; crashes of C code show there."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    faulthandler.enable(file=2, all_threads=False)


def give_memory_back() -> None:
    """Returns to the machine what nothing refers to any more."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError):  # a C library that is not GNU's returns it by itself
            ctypes.CDLL(None).malloc_trim(0)


def memory_bytes() -> int:
    """What the end of this process and of its children gives back; 0: not known.

    Their resident pages but those of files, which the machine takes back when it needs them; pages
    shared with others in proportion.
    """
    pid = os.getpid()
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(_memory_of(process) for process in (str(pid), *children))
    except OSError:
        return 0


def _memory_of(pid: str) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kibibytes = {
        name: int(rest.removesuffix("kB"))
        for name, _, rest in (line.partition(":") for line in lines[1:])
    }
    return (kibibytes["Pss"] - kibibytes.get("Pss_File", 0)) << 10


def leave(status: int) -> NoReturn:
    """Ends the process at once: no handlers, no waiting for threads."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
