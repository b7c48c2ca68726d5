import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.aws.imds import Imds, serving
from worker.node.cloud.imds import InstanceMetadata
from worker.node.cloud.port import Instance, MetadataUnavailable, Notice, Target

IDENTITY = "dynamic/instance-identity/document"


@pytest.fixture
def imds() -> Iterator[Imds]:
    with serving(Imds.of("i-0abc")) as it:
        yield it


@pytest.fixture
async def metadata(imds: Imds) -> AsyncIterator[InstanceMetadata]:
    it = InstanceMetadata(imds.url)
    yield it
    it.close()
    await asyncio.sleep(0)  # lets the transport close its socket


async def test_a_machine_reads_who_it_is_and_when_this_run_of_it_was_asked_for(
    imds: Imds, metadata: InstanceMetadata
) -> None:
    identity = json.loads(imds.values[IDENTITY]) | {"pendingTime": "2026-11-28T10:00:05Z"}
    imds.values[IDENTITY] = json.dumps(identity)

    instance = await metadata.instance()

    assert instance == Instance("i-0abc", "us-east-1", asked_at=1_795_860_005.0)


@pytest.mark.parametrize(
    ("state", "target"),
    [
        ("InService", Target.SERVE),
        ("Warmed:Stopped", Target.WARM),
        ("Warmed:Running", Target.WARM),
        ("Warmed:Terminated", Target.LEAVE),
        ("Terminated", Target.LEAVE),
        ("Detached", Target.LEAVE),
        ("Standby", Target.LEAVE),
    ],
)
async def test_what_becomes_of_a_machine(
    imds: Imds, metadata: InstanceMetadata, state: str, target: Target
) -> None:
    imds.target_state(state)

    assert await metadata.target() is target


async def test_a_machine_of_no_group_has_no_target(imds: Imds, metadata: InstanceMetadata) -> None:
    del imds.values["meta-data/autoscaling/target-lifecycle-state"]

    assert await metadata.target() is None


async def test_an_interruption_comes_before_a_recommendation(
    imds: Imds, metadata: InstanceMetadata
) -> None:
    assert await metadata.notice() is None
    imds.recommend_rebalance("2026-11-28T10:00:00Z")
    assert await metadata.notice() == Notice("spot rebalance recommendation")
    imds.interrupt("2026-11-28T10:02:00Z")

    assert await metadata.notice() == Notice("spot interruption: terminate", at=1_795_860_120.0)


async def test_an_expired_token_is_replaced(imds: Imds, metadata: InstanceMetadata) -> None:
    await metadata.target()

    imds.forget_tokens()

    assert await metadata.target() is Target.SERVE


async def test_one_token_serves_many_questions(imds: Imds, metadata: InstanceMetadata) -> None:
    for _ in range(3):
        await metadata.target()

    assert len(imds.tokens) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"region": 3}', "null"])
async def test_metadata_that_say_nothing_are_unavailable(
    imds: Imds, metadata: InstanceMetadata, text: str
) -> None:
    imds.values[IDENTITY] = text

    with pytest.raises(MetadataUnavailable):
        await metadata.instance()


async def test_a_machine_that_is_nobodys_is_told_nothing() -> None:
    with serving(Imds()) as imds:
        url = imds.url

    with pytest.raises(MetadataUnavailable):
        await InstanceMetadata(url).instance()
