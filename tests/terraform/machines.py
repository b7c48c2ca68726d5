"""Instances of an account of moto that really do something: each that boots gets a real agent."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

from tests.aws.imds import Imds, serving
from tests.terraform.account import Account

_SETTINGS = re.compile(r"<<'SETTINGS'\n(.*?)^SETTINGS$", re.M | re.S)
# Workers are processes here, so nothing of containers is told.
_OF_CONTAINERS = ("PLATFORM_NODE_IMAGE", "PLATFORM_NODE_SNAPSHOTTER", "PLATFORM_NODE_PULL_SOCKET")
_LOOK_S = 0.2


@dataclass
class Machines:
    """Boots what an account's groups launch, as their launch templates say."""

    account: Account
    folder: Path
    control_plane: str
    environment: Mapping[str, str]
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def boot_all(self, stack: ExitStack) -> None:
        """Every instance that its group has launched to serve and that has no agent gets one."""
        self.account.cloud.tick()
        for member in tuple(self.account.cloud.members()):
            is_new = member.instance_id not in self.agents
            if is_new and member.lifecycle_state in ("Pending:Wait", "InService"):
                self.agents[member.instance_id] = stack.enter_context(
                    self._agent(member.instance_id, member.instance.user_data.decode())
                )

    @contextmanager
    def _agent(self, instance_id: str, user_data: str) -> Iterator[subprocess.Popen[bytes]]:
        log = self.folder / f"{instance_id}.log"
        with serving(Imds.of(instance_id)) as imds, log.open("wb") as out:
            here = {
                "PLATFORM_NODE_RUNTIME": "process",
                "PLATFORM_NODE_STATE_DIR": str(self.folder / instance_id),
                "PLATFORM_NODE_METADATA_URL": imds.url,
                "PLATFORM_NODE_CONTROL_PLANE_URL": self.control_plane,  # not its name in the VPC
            }
            told = {**self.environment, **settings_in(user_data), **self.account.environment}
            told = {name: it for name, it in told.items() if name not in _OF_CONTAINERS}
            agent = subprocess.Popen(
                [sys.executable, "-m", "worker.main", "node"],
                env=told | here,
                stdout=out,
                stderr=out,
            )
            try:
                yield agent
            finally:
                agent.terminate()
                agent.wait(30)


def settings_in(user_data: str) -> dict[str, str]:
    """What an instance's first boot leaves for its agent."""
    (block,) = _SETTINGS.findall(user_data)
    return dict(line.split("=", 1) for line in shlex.split(block))


@contextmanager
def running(machines: Machines) -> Iterator[None]:
    """Instances boot as they come, until this ends; then their agents end, too."""
    over = Event()
    failures: list[Exception] = []

    def watch(stack: ExitStack) -> None:
        try:
            while not over.wait(_LOOK_S):
                machines.boot_all(stack)
        except Exception as error:
            failures.append(error)

    with ExitStack() as stack:
        thread = Thread(target=watch, args=(stack,), name="machines")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
    assert not failures, failures
