"""Several machines, one platform: namespaces with addresses, clocks and boots of their own."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
LONG = {"prompt": "Once upon a time", "max_tokens": 64, "min_tokens": 64, "temperature": 0}
# One replica fills a machine.
FILLS = {"memory_mib": int(psutil.virtual_memory().total * 0.6) >> 20}


@dataclass
class Fleet:
    """A platform without a node of its own, and two machines that joined it."""

    platform: RunningPlatform
    network: Network
    folder: Path
    environment: dict[str, str]
    callers: ThreadPoolExecutor

    @property
    def machines(self) -> list[Machine]:
        return self.network.machines

    def join(self, number: int) -> None:
        """So many machines more."""
        new = [self.network.add(self.folder, self.environment) for _ in range(number)]
        for machine in new:
            machine.start(self.platform.url)
        for machine in new:
            self.until_known(machine)

    def deploy(self, source: Path, *, most: int) -> None:
        """At most so many replicas, one on a machine, one request at a time on each."""
        self.platform.deploy(
            "chat",
            source,
            scaling={"grace": 2, "max": most, "sleep": 0, "target_concurrency": 1},
            limits={"max_concurrency": 1},
            resources=FILLS,
        )

    def until_known(self, machine: Machine) -> None:
        until(lambda: self.knows(machine), seconds=60, what=f"{machine.name} has registered")

    def knows(self, machine: Machine) -> bool:
        return any(node["node_id"] == machine.name for node in self.nodes())

    def nodes(self) -> list[dict[str, object]]:
        return list(self.platform.client.get("/v1/nodes").json()["data"])

    def replicas(self) -> dict[str, str]:
        """The node of each replica that is not over."""
        return {it["replica_id"]: it["node_id"] for it in self.platform.status("chat")["replicas"]}

    def serving(self) -> Machine:
        """The machine on which a request is."""
        replicas = self.platform.status("chat")["replicas"]
        return self.named(next(it["node_id"] for it in replicas if it["in_flight"]))

    def served(self, answer: httpx.Response) -> Machine:
        """The machine that served a cold request."""
        request_id = answer.headers["firstlight-request-id"]
        reports = self.platform.cold_starts("chat")
        return self.named(next(it["node_id"] for it in reports if it["request_id"] == request_id))

    def named(self, node: str) -> Machine:
        return next(machine for machine in self.machines if machine.name == node)

    def invoke(self, body: dict[str, object] = BODY) -> httpx.Response:
        return self.platform.client.post("/v1/models/chat/invoke", json=body, timeout=100)

    def begin(self) -> Future[httpx.Response]:
        """A request that others do not wait for."""
        return self.callers.submit(self.invoke, LONG)

    def begin_alone(self) -> tuple[Future[httpx.Response], Machine]:
        """A request, and the machine that it is on now."""
        call = self.begin()
        until(lambda: self.platform.status("chat")["in_flight"], seconds=60, what="it is served")
        return call, self.serving()

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
        with (
            running_platform(environment | told) as platform,
            ThreadPoolExecutor(3) as callers,
        ):
            fleet = Fleet(platform, network, folder, environment, callers)
            fleet.join(2)
            fleet.deploy(smollm2_dir, most=1)
            yield fleet


def test_a_model_is_served_by_another_machine_and_the_wait_is_accounted_for(fleet: Fleet) -> None:
    answer = fleet.invoke()

    assert answer.status_code == 200, answer.text
    assert fleet.served(answer) in fleet.machines
    (report,) = fleet.platform.cold_starts("chat")
    explained = sum(share["seconds"] for share in report["shares"])
    assert explained + report["unattributed_s"] == pytest.approx(report["ttft_s"])
    assert report["unattributed_s"] <= max(0.005, 0.01 * report["ttft_s"])
    assert 0 < report["clock_uncertainty_s"] < 0.05


def test_a_machine_that_dies_is_replaced_by_another(fleet: Fleet) -> None:
    call, dead = fleet.begin_alone()

    dead.kill()
    answer = call.result()

    assert answer.status_code == 200, answer.text
    assert fleet.served(answer) is not dead
    assert not fleet.knows(dead), "its lease is over"
    dead.start(fleet.platform.url)
    fleet.until_known(dead)


def test_a_machine_that_is_cut_off_is_replaced_and_stops_what_it_had_when_it_is_back(
    fleet: Fleet,
) -> None:
    call, lost = fleet.begin_alone()

    lost.cut_off()
    answer = call.result()

    assert answer.status_code == 200, answer.text
    assert fleet.served(answer) is not lost
    assert not fleet.knows(lost), "its lease is over"
    assert lost.named("fl-replica"), "nobody could tell it to stop"
    lost.reconnect()
    fleet.until_known(lost)
    fleet.until_settled()


def test_what_the_first_machine_has_no_room_for_runs_on_the_second(
    fleet: Fleet, smollm2_dir: Path
) -> None:
    fleet.deploy(smollm2_dir, most=2)

    calls = [fleet.begin() for _ in range(3)]

    names = {machine.name for machine in fleet.machines}
    until(lambda: set(fleet.replicas().values()) == names, seconds=60, what="both have a replica")
    assert [call.result().status_code for call in calls] == [200] * 3


def test_a_second_machine_of_the_same_name_is_refused(fleet: Fleet) -> None:
    first = fleet.machines[0]
    second = fleet.network.add(fleet.folder, fleet.environment)
    since = len(fleet.platform.log.read_text())

    second.start(fleet.platform.url, id=first.name)

    until(
        lambda: "runs on another machine" in second.log.read_text(),
        seconds=30,
        what="it is told that the name is taken",
    )
    second.stop()
    assert "node.left" not in fleet.platform.log.read_text()[since:], "it says goodbye for nobody"
    assert fleet.knows(first)
