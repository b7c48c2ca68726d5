"""Several machines, one platform: namespaces with addresses, clocks and boots of their own."""

import threading
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
LONG = {"prompt": "Once upon a time", "max_tokens": 64, "temperature": 0}
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


class Call:
    """One request in a thread of its own."""

    def __init__(self, fleet: Fleet, body: dict[str, object]) -> None:
        self.response: httpx.Response | None = None

        def run() -> None:
            self.response = fleet.invoke(body)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def result(self) -> httpx.Response:
        self._thread.join(timeout=110)
        assert self.response is not None, "the request hangs"
        return self.response


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


def test_what_the_first_machine_has_no_room_for_runs_on_the_second(fleet: Fleet) -> None:
    fleet.join()

    calls = [Call(fleet, LONG), Call(fleet, LONG)]

    assert [call.result().status_code for call in calls] == [200, 200]
    assert set(fleet.replicas().values()) == {machine.name for machine in fleet.machines}
    fleet.until_settled()


def test_a_machine_that_dies_is_replaced_by_another(fleet: Fleet) -> None:
    call = Call(fleet, LONG)
    until(lambda: fleet.platform.status("chat")["in_flight"], seconds=60, what="it is served")
    dead = fleet.serving()

    dead.kill()
    after = fleet.invoke()

    assert call.result().status_code in {200, 502}, call.result().text
    assert after.status_code == 200, after.text
    assert not fleet.knows(dead)
    assert fleet.serving() is not dead
    dead.start(fleet.platform.url)
    until(lambda: fleet.knows(dead), seconds=30, what="it is back")
    fleet.until_settled()


def test_a_machine_that_is_cut_off_is_replaced_and_stops_what_it_had_when_it_is_back(
    fleet: Fleet,
) -> None:
    assert fleet.invoke().status_code == 200
    lost = fleet.serving()
    call = Call(fleet, LONG)

    lost.cut_off()
    after = fleet.invoke()

    assert call.result().status_code in {200, 502}, call.result().text
    assert after.status_code == 200, after.text
    assert not fleet.knows(lost)
    assert lost.named("fl-replica"), "nobody could tell it to stop"
    assert list(fleet.replicas().values()) != [lost.name]
    lost.reconnect()
    until(lambda: fleet.knows(lost), seconds=30, what="it is back")
    fleet.until_settled()
    assert fleet.invoke().status_code == 200
    fleet.until_settled()
    assert {node["node_id"] for node in fleet.nodes()} == {it.name for it in fleet.machines}


def test_a_second_machine_of_the_same_name_is_refused(fleet: Fleet) -> None:
    first = fleet.machines[0]
    second = fleet.network.add(fleet.folder, fleet.environment)

    second.start(fleet.platform.url, id=first.name)

    until(
        lambda: "runs on another machine" in second.log.read_text(),
        seconds=30,
        what="it is told that the name is taken",
    )
    assert fleet.knows(first)
    second.stop()
