"""A cold start whose weights come from an object store while the model is built."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.contracts.revision import ReplicaState, ResolvedSource
from infra.contracts.stage import Stage
from infra.errors import SourceChanged
from infra.sources.s3 import S3Source
from tests.node.makers import assignment, desired
from tests.node.real_node import REAL, RealNode, real_node
from tests.node.test_real_model import complete

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

WEIGHTS = "chat/model.safetensors"


@pytest.fixture(scope="module")
def store(smollm2_dir: Path) -> Iterator[tuple[str, Any]]:
    """A store that speaks S3, with SmolLM2 in it, and its client."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="models")
    for path in smollm2_dir.iterdir():
        client.put_object(Bucket="models", Key=f"chat/{path.name}", Body=path.read_bytes())
    yield f"http://{host}:{port}", client
    server.stop()


@pytest.fixture
def source(store: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> ResolvedSource:
    for name, value in aws(store[0]).items():
        monkeypatch.setenv(name, value)
    return S3Source().resolve("s3://models/chat")[0]


@pytest.fixture
async def node(environment: dict[str, str], store: tuple[str, Any]) -> AsyncIterator[RealNode]:
    async with real_node(environment | aws(store[0]), REAL) as running:
        yield running


def aws(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint,
    }


async def test_weights_come_from_the_store_once_and_then_from_the_node(
    node: RealNode, source: ResolvedSource
) -> None:
    answers = []
    for number, origins in ((1, {"s3"}), (2, {"cache", "packed"})):
        run = assignment(f"r{number}").model_copy(update={"source": source})
        node.fake.want(desired(run, version=2 * number))
        report = await node.until_state(ReplicaState.READY, f"r{number}")
        weights = next(timing for timing in report.stages if timing.stage is Stage.WEIGHTS)
        assert weights.source in origins
        assert (weights.bytes or 0) > 200 << 20
        answers.append(await complete(report))
        for before, after in zip(report.stages, report.stages[1:], strict=False):
            assert after.started_at == pytest.approx(before.ended_at, abs=1e-5)
        drain = run.model_copy(update={"desired": "drain"})
        await node.until(lambda: has_cached(node, source), "the weights are in the cache")
        node.fake.want(desired(drain, version=2 * number + 1))
        await node.until_state(ReplicaState.STOPPED, f"r{number}")

    assert answers[0] == answers[1]
    assert "Paris" in answers[0]


async def test_bytes_that_are_not_those_that_were_deployed_are_refused(
    node: RealNode, source: ResolvedSource, store: tuple[str, Any]
) -> None:
    _, client = store
    before = client.get_object(Bucket="models", Key=WEIGHTS)["Body"].read()
    client.put_object(Bucket="models", Key=WEIGHTS, Body=before[:-2] + b"xx")
    try:
        run = assignment("r1").model_copy(update={"source": source})
        node.fake.want(desired(run, version=1))
        report = await node.until_state(ReplicaState.FAILED)
    finally:
        client.put_object(Bucket="models", Key=WEIGHTS, Body=before)

    assert report.failure is not None and report.failure.is_permanent
    assert report.failure.code == SourceChanged.slug


def has_cached(node: RealNode, source: ResolvedSource) -> bool:
    folder = node.state_dir / "models" / source.digest.removeprefix("sha256:")
    return (folder / "model.safetensors").exists()
