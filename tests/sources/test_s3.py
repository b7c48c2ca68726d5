from pathlib import Path

import pytest

from infra.errors import (
    PlatformError,
    SourceChanged,
    SourceInvalid,
    SourceUnavailable,
    WeightsUnavailable,
)
from infra.sources.s3 import S3Source
from tests.sources.conftest import Contents, S3World
from tests.sources.models import WEIGHTS, model_files, sha256


def silent(fraction: float) -> None:
    """Hears progress and says nothing."""


def test_objects_are_pinned_by_etag_and_digest(s3: S3World) -> None:
    resolved, _ = s3.source.resolve(s3.put(model_files()))

    head = s3.client.head_object(Bucket="models", Key="chat/model.safetensors")
    etag = head["ETag"].strip('"')
    (weights,) = (file for file in resolved.files if file.path == "model.safetensors")
    assert (weights.etag, weights.digest) == (etag, f"md5:{etag}")
    assert resolved.uri == "s3://models/chat"


def test_an_object_changed_since_it_was_resolved_is_refused(s3: S3World, tmp_path: Path) -> None:
    resolved, _ = s3.source.resolve(s3.put(model_files()))
    s3.put(model_files(model__safetensors=WEIGHTS[::-1]))

    with pytest.raises(SourceChanged, match="has changed since the model was deployed"):
        s3.source.fetch(resolved, tmp_path, silent)

    folder = tmp_path / resolved.digest.removeprefix("sha256:")
    assert not list(folder.glob("*.safetensors"))


def test_damaged_bytes_are_refused(s3: S3World, tmp_path: Path) -> None:
    resolved, _ = s3.source.resolve(s3.put(model_files()))
    other = [
        file.model_copy(update={"digest": f"md5:{'0' * 32}"}) if file.path == name else file
        for name in ["model.safetensors"]
        for file in resolved.files
    ]

    with pytest.raises(WeightsUnavailable, match=r"model\.safetensors arrived damaged"):
        s3.source.fetch(resolved.model_copy(update={"files": tuple(other)}), tmp_path, silent)

    assert s3.source.fetch(resolved, tmp_path, silent).is_dir()


def test_a_checksum_that_the_store_keeps_is_the_digest_and_lets_an_equal_object_replace_it(
    s3: S3World, tmp_path: Path, contents: Contents
) -> None:
    def put(**options: str) -> None:
        s3.client.put_object(
            Bucket="models",
            Key="chat/model.safetensors",
            Body=WEIGHTS,
            ChecksumAlgorithm="SHA256",
            **options,
        )

    uri = s3.put(model_files())
    put()
    resolved, _ = s3.source.resolve(uri)
    (weights,) = (file for file in resolved.files if file.path == "model.safetensors")
    assert weights.digest == f"sha256:{sha256(WEIGHTS)}"
    renamed = weights.model_copy(update={"etag": "0" * 32})  # as if uploaded in other parts
    files = [renamed if file is weights else file for file in resolved.files]

    folder = s3.source.fetch(resolved.model_copy(update={"files": tuple(files)}), tmp_path, silent)

    assert contents(folder)["model.safetensors"] == WEIGHTS


def test_in_a_bucket_with_versions_the_pinned_version_is_fetched(
    s3: S3World, tmp_path: Path, contents: Contents
) -> None:
    s3.client.put_bucket_versioning(Bucket="models", VersioningConfiguration={"Status": "Enabled"})
    resolved, _ = s3.source.resolve(s3.put(model_files()))
    s3.put(model_files(model__safetensors=WEIGHTS[::-1]))

    folder = s3.source.fetch(resolved, tmp_path, silent)

    assert contents(folder)["model.safetensors"] == WEIGHTS


def test_a_model_may_lie_at_the_top_of_a_bucket(s3: S3World, tmp_path: Path) -> None:
    for name, content in model_files().items():
        s3.client.put_object(Bucket="models", Key=name, Body=content)

    resolved, _ = s3.source.resolve("s3://models")

    assert resolved.uri == "s3://models"
    assert (s3.source.fetch(resolved, tmp_path, silent) / "config.json").is_file()


def test_progress_counts_bytes(s3: S3World, tmp_path: Path, small_chunks: None) -> None:
    resolved, _ = s3.source.resolve(s3.put(model_files()))
    heard: list[float] = []

    s3.source.fetch(resolved, tmp_path, heard.append)

    assert heard == sorted(heard)
    assert len(set(heard)) > 5


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("s3://no-such-bucket/x", SourceInvalid, "does not exist"),
        ("s3://models/empty", SourceInvalid, "holds no objects"),
        ("s3:///x", SourceInvalid, "is not s3://bucket/prefix"),
    ],
)
def test_what_does_not_exist_is_said_so(
    s3: S3World, uri: str, error: type[PlatformError], words: str
) -> None:
    with pytest.raises(error, match=words):
        s3.source.resolve(uri)


def test_missing_credentials_are_said_so(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(SourceUnavailable, match="credentials"):
        S3Source(s3_endpoint).resolve("s3://models/chat")


def test_a_store_that_is_not_there_is_unavailable(
    s3: S3World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    with pytest.raises(SourceUnavailable, match="cannot read s3://models/chat"):
        S3Source("http://127.0.0.1:9").resolve("s3://models/chat")
