"""The system calls that a worker's container may make; any other fails as if it did not exist."""

import errno
from functools import cache
from importlib.resources import files
from typing import Any

# clone(2) may make threads and processes, and none of the namespaces of these flags.
_CLONE_NEW = 0x7E020000
_PLAIN_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
_UNIX, _INET, _NETLINK, _INET6 = 1, 2, 16, 10


@cache
def seccomp_profile() -> dict[str, Any]:
    """In the words of the OCI runtime specification. What it names is shared: not to be changed.

    Left out are calls that administer the machine (mount, bpf, kexec, modules, clocks, swap), look
    into other processes (ptrace, process_vm_*), reach the kernel past its checks (io_uring,
    userfaultfd, perf), or make namespaces. Sockets are of families that a worker has a use for.
    """
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": list(allowed_syscalls()), "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    {"index": 0, "value": _CLONE_NEW, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
                ],
            },
            # Its flags are in memory, where a filter cannot look; C libraries fall back to clone.
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
            *(_first_is("socket", family) for family in (_UNIX, _INET, _INET6, _NETLINK)),
            *(_first_is("personality", persona) for persona in _PLAIN_PERSONALITIES),
        ],
    }


def allowed_syscalls() -> tuple[str, ...]:
    """Those that need no look at their arguments, in the order of the alphabet."""
    text = files("worker.node.container").joinpath("syscalls.txt").read_text()
    return tuple(name for line in text.splitlines() for name in line.partition("#")[0].split())


def _first_is(name: str, value: int) -> dict[str, Any]:
    return {
        "names": [name],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}],
    }
