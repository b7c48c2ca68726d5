"""Every kind of source as a world in which a test can put models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from infra.backoff import Backoff
from infra.registry.manifest import MANIFEST
from infra.sources.fetched import FetchedSource
from infra.sources.file import FileSource
from infra.sources.hub import HubSource
from infra.sources.memory import MemorySource
from infra.sources.patience import Patience
from infra.sources.port import ModelSource
from infra.sources.registry import RegistrySource
from infra.sources.s3 import S3Source
from tests.snapshotter.registry_server import RegistryServer, registry_server
from tests.sources.hub_standin import HubStandin, hub_standin
from tests.sources.models import WEIGHTS

IMPATIENT = Patience(attempts=3, failures=6, backoff=Backoff(first_s=0.001, most_s=0.01))
SMALL_CHUNK_BYTES = 16_000
RAW = "application/vnd.cncf.model.weight.v1.raw"
TITLE = "org.opencontainers.image.title"
NUM_CHUNKS = -(-len(WEIGHTS) // SMALL_CHUNK_BYTES)


class World(Protocol):
    """A place for models, and the source that reads them."""

    source: ModelSource

    def put(self, files: dict[str, bytes]) -> str:
        """Makes these the model's files and returns its URI."""

    def unknown(self) -> str:
        """A URI of nothing."""


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Makes these exactly the folder's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in files:
            path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


class FileWorld:
    def __init__(self, folder: Path) -> None:
        self.source: ModelSource = FileSource()
        self._folder = folder

    def put(self, files: dict[str, bytes]) -> str:
        return write(self._folder / "model", files).as_uri()

    def unknown(self) -> str:
        return (self._folder / "nothing").as_uri()


class MemoryWorld:
    def __init__(self, folder: Path) -> None:
        self.memory = MemorySource()
        self.source: ModelSource = self.memory
        self._folder = folder

    def put(self, files: dict[str, bytes]) -> str:
        folder = write(self._folder / "model", files)
        resolved, facts = FileSource().resolve(folder.as_uri())
        self.memory.add("hf://org/model", resolved, facts, folder)
        return "hf://org/model"

    def unknown(self) -> str:
        return "hf://org/nothing"


class HubWorld:
    def __init__(self, hub: HubStandin) -> None:
        self.source: ModelSource = FetchedSource(
            HubSource(hub.url, token="secret-token", patience=IMPATIENT)
        )
        self._hub = hub

    def put(self, files: dict[str, bytes]) -> str:
        self._hub.repositories["org/model"] = dict(files)
        return "hf://org/model@main"

    def unknown(self) -> str:
        return "hf://org/nothing"


class S3World:
    def __init__(self, endpoint: str, client: Any) -> None:
        self.source: ModelSource = FetchedSource(S3Source(endpoint, patience=IMPATIENT))
        self.client = client

    def put(self, files: dict[str, bytes]) -> str:
        for found in self.client.list_objects_v2(Bucket="models").get("Contents", ()):
            if found["Key"].removeprefix("chat/") not in files:
                self.client.delete_object(Bucket="models", Key=found["Key"])
        for name, content in files.items():
            self.client.put_object(Bucket="models", Key=f"chat/{name}", Body=content)
        return "s3://models/chat"

    def unknown(self) -> str:
        return "s3://models/nothing"


class RegistryWorld:
    def __init__(self, server: RegistryServer, folder: Path) -> None:
        self.server = server
        self.login = folder / "docker.json"
        self.source: ModelSource = FetchedSource(RegistrySource(self.login, patience=IMPATIENT))

    def put(self, files: dict[str, bytes]) -> str:
        return self.push({name: (RAW, content) for name, content in files.items()})

    def push(self, files: dict[str, tuple[str, bytes]], **annotations: str) -> str:
        """An artifact of one layer a file, each with its media type."""
        layers = [
            {
                "mediaType": media_type,
                "digest": self.server.add_blob(content),
                "size": len(content),
                "annotations": {TITLE: name} | annotations,
            }
            for name, (media_type, content) in files.items()
        ]
        self.server.add_manifest("v1", {"mediaType": MANIFEST, "layers": layers})
        return f"oci://{self.server.address}/org/model:v1"

    def unknown(self) -> str:
        return f"oci://{self.server.address}/org/nothing:v1"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A store that speaks S3, in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3World]:
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket="models")
    yield S3World(s3_endpoint, client)
    versions = client.list_object_versions(Bucket="models")
    for found in [*versions.get("Versions", ()), *versions.get("DeleteMarkers", ())]:
        client.delete_object(Bucket="models", Key=found["Key"], VersionId=found["VersionId"])
    client.delete_bucket(Bucket="models")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandin]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    with hub_standin() as standin:
        yield standin


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with registry_server() as server:
        yield server


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of test models come in several chunks."""
    monkeypatch.setattr("infra.sources.chunks.FIRST_BYTES", SMALL_CHUNK_BYTES)
    monkeypatch.setattr("infra.sources.chunks.CHUNK_BYTES", SMALL_CHUNK_BYTES)


@pytest.fixture(params=["file", "hub", "s3", "registry", "memory"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    match request.param:
        case "file":
            return FileWorld(tmp_path)
        case "memory":
            return MemoryWorld(tmp_path)
        case "hub":
            return HubWorld(request.getfixturevalue("hub"))
        case "registry":
            return RegistryWorld(request.getfixturevalue("registry"), tmp_path)
        case _:
            found: S3World = request.getfixturevalue("s3")
            return found


Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def contents() -> Contents:
    """All files below a folder, by name."""
    return lambda folder: {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
