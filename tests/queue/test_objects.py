"""What every ObjectStore does."""

import stat
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from infra.errors import DependencyMissing, StoreUnavailable
from infra.objectstore.folder import FolderObjects
from infra.objectstore.memory import MemoryObjects
from infra.objectstore.port import ObjectStore
from infra.objectstore.s3 import S3Objects

KEY = "jobs/job_0123.1"


@pytest.fixture(params=["memory", "folder", "s3"])
def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryObjects()
    elif request.param == "folder":
        yield FolderObjects(tmp_path / "results")
    else:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with mock_aws():
            boto3.client("s3").create_bucket(Bucket="results")
            yield S3Objects("results", "of/ours")


async def test_a_value_is_there_until_it_is_deleted(objects: ObjectStore):
    assert await objects.get(KEY) is None
    await objects.put(KEY, b"one")
    await objects.put(KEY, b"two")
    assert await objects.get(KEY) == b"two"
    await objects.delete(KEY)
    await objects.delete(KEY)
    assert await objects.get(KEY) is None


async def test_keys_of_a_folder_come_in_order_a_few_at_a_time(objects: ObjectStore):
    assert await objects.keys("jobs", after="", count=9) == ()
    kept = [f"jobs/job_{number:02}.1" for number in range(5)]
    for key in (*reversed(kept), "elsewhere/x"):
        await objects.put(key, b"x")
    first = await objects.keys("jobs", after="", count=3)
    assert first == tuple(kept[:3])
    assert await objects.keys("jobs", after=first[-1], count=3) == tuple(kept[3:])


async def test_what_a_put_that_was_cut_short_left_is_listed_and_deleted(tmp_path: Path):
    folder = FolderObjects(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / ".new-job_0123.1").write_bytes(b"half")
    assert await folder.get(KEY) is None
    assert await folder.keys("jobs", after="", count=9) == (KEY,)
    await folder.delete(KEY)
    assert list((tmp_path / "jobs").iterdir()) == []


async def test_keys_that_lead_elsewhere_are_defects(objects: ObjectStore):
    for key in ("../x", "a/../b", "/etc/passwd", "a//b", "a/.", "", "A", "a/..b/"):
        with pytest.raises(AssertionError):
            await objects.put(key, b"")


async def test_a_folder_keeps_values_to_itself_and_leaves_no_halves(tmp_path: Path):
    folder = tmp_path / "results"
    await FolderObjects(folder).put(KEY, b"one")
    assert stat.S_IMODE((folder / "jobs").stat().st_mode) == 0o700
    assert [it.name for it in (folder / "jobs").iterdir()] == ["job_0123.1"]


async def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path):
    (tmp_path / "results").write_text("a file")
    with pytest.raises(StoreUnavailable):
        await FolderObjects(tmp_path / "results").put(KEY, b"one")


def test_a_machine_without_boto3_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("infra.objectstore.s3.find_spec", lambda _: None)
    with pytest.raises(DependencyMissing, match="boto3"):
        S3Objects("results", "")


async def test_a_bucket_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws(), pytest.raises(StoreUnavailable):
        await S3Objects("nowhere", "").put(KEY, b"one")
