"""Machines on one machine: each a network namespace with clocks and a boot of its own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psutil

from tests.support.processes import alive, descendants, require, until

NODE_TOKEN = "a-key-of-node-agents"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# What runs in the machine before the agent does: no mount of it is seen elsewhere.
BOOT = f'mount --bind "$1" {BOOT_ID} && shift && exec "$@"'


class Machine:
    """One machine; its agent is started, killed and cut off like one that stands elsewhere."""

    def __init__(
        self, number: int, network: "Network", folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = f"fl{network.tag}m{number}"
        self.address = f"{network.prefix}.{10 + number}"
        self.log = folder / f"{self.name}.log"
        self._boot_id = folder / f"{self.name}.boot"
        self._boot_id.write_text(f"{uuid4()}\n")
        self._ahead_s = 1_000_000 * number  # its monotonic clock is another one
        self._network = network
        self._environment = dict(environment) | {
            "PLATFORM_NODE_TOKEN": NODE_TOKEN,
            "PLATFORM_NODE_STATE_DIR": str(folder / self.name),
            "PLATFORM_NODE_ID": self.name,
        }
        self._agent: subprocess.Popen[bytes] | None = None
        self._seen: list[psutil.Process] = []

    def plug_in(self) -> None:
        """Makes the namespace, with a cable to the network's switch."""
        outside = f"{self.name}o"
        _ip("netns", "add", self.name)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", outside, "master", self._network.switch, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "link", "set", "eth0", "up")

    def unplug(self) -> None:
        """Ends everything on it."""
        self.kill()
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self.name)

    def start(self, control_plane: str, **settings: str) -> None:
        """Boots it: `platform node`, with further settings of the agent."""
        told = {f"PLATFORM_NODE_{name.upper()}": value for name, value in settings.items()}
        ahead = str(self._ahead_s)
        with self.log.open("ab") as log:
            self._agent = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.name),
                    *("unshare", "--time", "--monotonic", ahead, "--boottime", ahead),
                    *("--fork", "--kill-child", "sh", "-ec", BOOT, "boot", str(self._boot_id)),
                    *(sys.executable, "-m", "control_plane.main", "node"),
                    *("--control-plane", control_plane),
                ],
                env=self._environment | told,
                stdout=log,
                stderr=log,
            )

    def processes(self) -> list[psutil.Process]:
        """All that runs on it, remembered for `is_gone`."""
        below = [] if self._agent is None else descendants(self._agent.pid)
        self._seen += [process for process in below if process not in self._seen]
        return below

    def named(self, kind: str) -> list[psutil.Process]:
        """Those that gave themselves that name: fl-replica, …"""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if process.name() == kind:
                    found.append(process)
        return found

    def kill(self) -> None:
        """As when the power fails: kill -9 of all that runs on it."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._agent is not None:
            self._agent.wait(timeout=10)
            self._agent = None
        until(self.is_gone, seconds=10, what=f"nothing is left of {self.name}")

    def stop(self) -> None:
        """As systemd stops it: SIGTERM to the agent, which ends what it has started."""
        for process in self.named("fl-node"):
            process.send_signal(signal.SIGTERM)
        until(self.is_gone, seconds=30, what=f"{self.name} has stopped")

    def is_gone(self) -> bool:
        return not alive(self._seen)

    def cut_off(self) -> None:
        """Pulls its cable: what is sent from now on arrives nowhere, and nobody is told."""
        _ip("link", "set", f"{self.name}o", "down")

    def reconnect(self) -> None:
        _ip("link", "set", f"{self.name}o", "up")


class Network:
    """A switch, and machines on it; this machine has `address` there."""

    def __init__(self) -> None:
        self.tag = f"{os.getpid() % 4096:03x}"
        self.switch = f"fl{self.tag}sw"
        self.prefix = f"10.213.{os.getpid() % 250}"
        self.address = f"{self.prefix}.1"
        self.machines: list[Machine] = []

    def add(self, folder: Path, environment: Mapping[str, str]) -> Machine:
        machine = Machine(len(self.machines) + 1, self, folder, environment)
        self.machines.append(machine)
        machine.plug_in()
        return machine


@contextmanager
def running_network() -> Iterator[Network]:
    """A network without machines, taken down with all that was added to it."""
    is_able = shutil.which("ip") and shutil.which("unshare") and os.geteuid() == 0
    require(is_able, "ip netns (iproute2, util-linux, and the rights of root)")
    network = Network()
    _ip("link", "add", network.switch, "type", "bridge")
    try:
        _ip("addr", "add", f"{network.address}/24", "dev", network.switch)
        _ip("link", "set", network.switch, "up")
        yield network
    finally:
        for machine in network.machines:
            machine.unplug()
        _ip("link", "del", network.switch)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)
