"""What a worker's container is allowed: the OCI runtime specification, as a pure function."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.node.container.cdi import NO_EDITS, Edits
from worker.node.container.seccomp import seccomp_profile
from worker.node.machine import MOST_OPEN_FILES

INSIDE = "/run/firstlight"  # the link to the agent, and the replica's log
MODELS = "/models"  # where the agent puts the files of the model that it is to serve
USER = 65532  # nobody's: no account of the machine has it
PROCESSES = 1024
_MIB = 1 << 20

# What of the kernel's own files a container neither reads nor writes, as runtimes agree upon.
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_CORE_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))  # null … urandom, tty


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use; None is as much as there is."""

    memory_bytes: int | None = None
    cpus: float | None = None
    processes: int = PROCESSES
    open_files: int = MOST_OPEN_FILES


@dataclass(frozen=True, slots=True)
class Program:
    """What an image runs: its entrypoint, environment and working directory."""

    entrypoint: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str = "/"


def container_spec(
    program: Program,
    arguments: tuple[str, ...],
    *,
    name: str,
    inside: str,
    cgroup: str,
    environment: Mapping[str, str],
    limits: Limits = Limits(),
    devices: Edits = NO_EDITS,
) -> dict[str, Any]:
    """See the runtime specification of the Open Container Initiative, 1.0.2.

    `inside` is the folder of this machine that becomes `/run/firstlight`; nobody in the container
    may make files there. The network is a namespace with nothing but loopback. `environment` goes
    over the image's own.
    """
    variables = {
        **program.environment,
        "HOME": "/tmp",
        **devices.environment,
        **environment,
    }
    return {
        "ociVersion": "1.0.2",
        "hostname": name,
        "root": {"path": "rootfs", "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": USER, "gid": USER},
            "args": [*program.entrypoint, *arguments],
            "env": [f"{key}={value}" for key, value in variables.items()],
            "cwd": program.folder,
            "noNewPrivileges": True,
            "capabilities": {kind: [] for kind in _CAPABILITY_SETS},
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": limits.open_files, "hard": limits.open_files},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
            "oomScoreAdj": 500,  # before the agent and what the machine needs
        },
        "mounts": [*_mounts(inside), *devices.mounts],
        "hooks": devices.hooks,
        "linux": {
            "namespaces": [
                {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")
            ],
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    *map(_allowed, _CORE_DEVICES),
                    *devices.allowed,
                ],
                **resources(limits),
            },
            "devices": list(devices.devices),
            "seccomp": seccomp_profile(),
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }


def resources(limits: Limits) -> dict[str, Any]:
    """The part of the specification that can change while a worker runs."""
    wanted: dict[str, Any] = {"pids": {"limit": limits.processes}}
    if limits.memory_bytes is not None:
        wanted["memory"] = {"limit": limits.memory_bytes}
    if limits.cpus is not None:
        period_us = 100_000
        wanted["cpu"] = {"quota": int(limits.cpus * period_us), "period": period_us}
    return wanted


def _mounts(inside: str) -> list[dict[str, Any]]:
    safe = ["nosuid", "nodev", "noexec"]
    return [
        _mount("/proc", "proc", safe),
        _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        _mount("/dev/shm", "tmpfs", [*safe, "mode=1777", f"size={512 * _MIB}"], "shm"),
        _mount("/sys", "sysfs", [*safe, "ro"]),
        # Programs that compile for themselves run what they compiled: no noexec.
        _mount("/tmp", "tmpfs", ["nosuid", "nodev", "mode=1777", f"size={1024 * _MIB}"]),
        # The agent makes mount points in it: whoever is in the container may not.
        _mount(MODELS, "tmpfs", [*safe, "mode=755", f"size={_MIB}"]),
        _mount(INSIDE, "bind", ["bind", *safe], inside),
    ]


def _mount(target: str, kind: str, options: list[str], source: str | None = None) -> dict[str, Any]:
    return {
        "destination": target,
        "type": kind,
        "source": source or kind,
        "options": options,
    }


def _allowed(device: tuple[int, int]) -> dict[str, Any]:
    major, minor = device
    return {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
