"""Several machines, one platform: namespaces with addresses, clocks and boots of their own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.machines import NODE_TOKEN, Machine, Network, running_network
from tests.support.platform import RunningPlatform, running_platform
from tests.support.processes import until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

KEY = "an-admins-key-of-this-test"
BODY = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
# One replica fills a machine.
FILLS = {"memory_mib": int(psutil.virtual_memory().total * 0.6) >> 20}


@dataclass
class Fleet:
    """A platform without a node of its own, and two machines that joined it."""

    platform: RunningPlatform
    network: Network
    folder: Path
    environment: dict[str, str]

    @property
    def machines(self) -> list[Machine]:
        return self.network.machines

    def join(self) -> Machine:
        machine = self.network.add(self.folder, self.environment)
        machine.start(self.platform.url)
        until(lambda: self.knows(machine), seconds=30, what=f"{machine.name} has registered")
        return machine

    def knows(self, machine: Machine) -> bool:
        return any(node["node_id"] == machine.name for node in self.nodes())

    def nodes(self) -> list[dict[str, object]]:
        return list(self.platform.client.get("/v1/nodes").json()["data"])

    def replicas(self) -> dict[str, str]:
        """The node of each replica that is not over."""
        return {it["replica_id"]: it["node_id"] for it in self.platform.status("chat")["replicas"]}

    def serving(self) -> Machine:
        """The machine on which the only replica is."""
        (node,) = self.replicas().values()
        return next(machine for machine in self.machines if machine.name == node)

    def invoke(self, body: dict[str, object] = BODY) -> httpx.Response:
        return self.platform.client.post("/v1/models/chat/invoke", json=body, timeout=100)

    def until_settled(self) -> None:
        """At zero: no replica anywhere, nothing in flight, and no process of one on a machine."""
        self.platform.until_idle("chat")
        until(
            lambda: not any(machine.named("fl-replica") for machine in self.machines),
            seconds=30,
            what="no replica's process is left on any machine",
        )


@pytest.fixture(scope="module")
def fleet(
    environment: dict[str, str], smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("machines")
    with running_network() as network:
        told = {
            "PLATFORM_HOST": network.address,
            "PLATFORM_API_KEY": KEY,
            "PLATFORM_NODE_TOKEN": NODE_TOKEN,
            "PLATFORM_CAPACITY": "none",
            "PLATFORM_STANDBY_MAX": "0",
        }
        with running_platform(environment | told) as platform:
            fleet = Fleet(platform, network, folder, environment)
            fleet.join()
            platform.deploy(
                "chat",
                smollm2_dir,
                scaling={"grace": 2, "max": 2, "sleep": 0},
                limits={"max_concurrency": 1},
                resources=FILLS,
            )
            yield fleet


def test_a_model_is_served_by_another_machine_and_the_wait_is_accounted_for(fleet: Fleet) -> None:
    answer = fleet.invoke()

    assert answer.status_code == 200, answer.text
    assert fleet.serving() is fleet.machines[0]
    (report,) = fleet.platform.cold_starts("chat")
    explained = sum(share["seconds"] for share in report["shares"])
    assert explained + report["unattributed_s"] == pytest.approx(report["ttft_s"])
    assert report["unattributed_s"] <= max(0.005, 0.01 * report["ttft_s"])
    assert 0 < report["clock_uncertainty_s"] < 0.05
    fleet.until_settled()
