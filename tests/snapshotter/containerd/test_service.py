"""The snapshots service answers as containerd's own snapshotters do."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from infra.containerd.protos import snapshots_pb2 as pb
from snapshotter.containerd.layers import FolderLayers
from tests.snapshotter.containerd.conftest import Asked, refusal, serving


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    with serving(tmp_path, FolderLayers()) as asked:
        yield asked


def test_what_does_not_exist_is_not_found(asked: Asked) -> None:
    for call in (asked.stat, asked.remove, asked.mounts, asked.usage):
        assert refusal(call, "nothing") is StatusCode.NOT_FOUND
    assert refusal(asked.commit, "nothing", "name") is StatusCode.NOT_FOUND
    assert refusal(asked.prepare, "key", "nothing") is StatusCode.NOT_FOUND
    assert refusal(asked.view, "key", "nothing") is StatusCode.NOT_FOUND
    assert refusal(asked.update, pb.Info(name="nothing")) is StatusCode.NOT_FOUND
    assert asked.folders() == []


def test_names_are_taken_once(asked: Asked) -> None:
    asked.committed("base")
    asked.prepare("key")

    for call in (asked.prepare, asked.view):
        assert refusal(call, "key") is StatusCode.ALREADY_EXISTS
        assert refusal(call, "base") is StatusCode.ALREADY_EXISTS
    assert refusal(asked.commit, "key", "base") is StatusCode.ALREADY_EXISTS
    assert asked.names() == ["base", "key"]
    assert len(asked.folders()) == 2


def test_only_what_is_committed_is_stood_on_and_only_what_is_active_is_committed(
    asked: Asked,
) -> None:
    asked.committed("base")
    asked.prepare("active", "base")
    asked.view("view", "base")

    for parent in ("active", "view"):
        assert refusal(asked.prepare, "key", parent) is StatusCode.INVALID_ARGUMENT
    for key in ("view", "base"):
        assert refusal(asked.commit, key, "name") is StatusCode.FAILED_PRECONDITION
    assert refusal(asked.mounts, "base") is StatusCode.FAILED_PRECONDITION


def test_what_others_stand_on_stays(asked: Asked) -> None:
    asked.committed("base")
    asked.prepare("active", "base")

    assert refusal(asked.remove, "base") is StatusCode.FAILED_PRECONDITION
    asked.remove("active")
    asked.remove("base")
    assert asked.names() == []
    assert asked.folders() == []


def test_a_mount_shows_the_chain_below_the_nearest_first(asked: Asked) -> None:
    root = asked.folder / "snapshots"

    first = asked.prepare("first")
    assert (first.type, first.source) == ("bind", f"{root}/1/fs")
    assert list(first.options) == ["rw", "rbind"]
    asked.commit("first", "one")

    only = asked.view("only", "one")
    assert (only.type, only.source) == ("bind", f"{root}/1/fs")
    assert list(only.options) == ["ro", "rbind"]

    asked.committed("two", parent="one")
    active = asked.prepare("active", "two")
    assert (active.type, active.source) == ("overlay", "overlay")
    assert list(active.options) == [
        "index=off",
        f"workdir={root}/4/work",
        f"upperdir={root}/4/fs",
        f"lowerdir={root}/3/fs:{root}/1/fs",
    ]
    assert asked.mounts("active") == active

    view = asked.view("view", "two")
    assert list(view.options) == ["index=off", f"lowerdir={root}/3/fs:{root}/1/fs"]


def test_a_root_folder_looks_like_the_one_below(asked: Asked) -> None:
    first = Path(asked.prepare("first").source)
    first.chmod(0o1770)
    asked.commit("first", "one")

    asked.prepare("second", "one")

    status = (asked.folder / "snapshots/2/fs").stat()
    assert status.st_mode & 0o7777 == 0o1770
    assert status.st_uid == os.getuid()


def test_labels_change_by_field_mask_and_nothing_else_does(asked: Asked) -> None:
    asked.prepare("key", a="1", b="2", empty="")
    assert asked.stat("key").labels == {"a": "1", "b": "2"}

    change = pb.Info(name="key", labels={"a": "3", "c": "4"})
    assert asked.update(change, "labels.a").labels == {"a": "3", "b": "2"}
    assert asked.update(change, "labels.b").labels == {"a": "3"}
    assert asked.update(change, "labels").labels == {"a": "3", "c": "4"}
    assert asked.update(pb.Info(name="key", labels={"d": "5"})).labels == {"d": "5"}
    for path in ("kind", "name", "parent", "created_at"):
        assert refusal(asked.update, change, path) is StatusCode.INVALID_ARGUMENT
    assert asked.stat("key").labels == {"d": "5"}


def test_a_commit_replaces_labels_and_times(asked: Asked) -> None:
    asked.prepare("key", old="1")
    before = asked.stat("key")
    asked.commit("key", "name", new="2")

    after = asked.stat("name")

    assert after.labels == {"new": "2"}
    assert after.kind == pb.COMMITTED
    assert after.created_at.ToNanoseconds() >= before.created_at.ToNanoseconds()
    assert after.created_at == after.updated_at


def test_a_list_is_filtered_and_comes_in_pages(asked: Asked) -> None:
    asked.committed("base")
    for number in range(120):
        asked.view(f"view-{number:03}", "base")

    assert len(asked.names()) == 121
    assert asked.names("kind==committed") == ["base"]
    assert asked.names("name==view-007", 'parent=="",kind!=view') == ["base", "view-007"]
    assert refusal(asked.names, "kind=") is StatusCode.INVALID_ARGUMENT


def test_usage_is_what_lies_in_the_snapshot_itself(asked: Asked) -> None:
    files = Path(asked.prepare("key").source)
    (files / "folder").mkdir()
    (files / "folder/file").write_bytes(b"x" * 100_000)
    (files / "link").hardlink_to(files / "folder/file")

    active = asked.usage("key")
    assert active.inodes == 3
    assert active.size >= 100_000
    asked.commit("key", "base")
    assert asked.usage("base") == active
    asked.view("view", "base")
    assert asked.usage("view").size == 0


def test_everything_survives_a_restart_but_what_belongs_to_nobody(tmp_path: Path) -> None:
    with serving(tmp_path, FolderLayers()) as asked:
        asked.committed("one", "two")
        mount = asked.prepare("key", "two", colour="blue")
        infos = [asked.stat(name) for name in asked.names()]
        (tmp_path / "snapshots/99").mkdir()
        asked.cleanup()
        assert "99" not in asked.folders()
        for left in ("98", "new-left"):
            (tmp_path / "snapshots" / left).mkdir()

    with serving(tmp_path, FolderLayers()) as asked:
        assert [asked.stat(name) for name in asked.names()] == infos
        assert asked.mounts("key") == mount
        assert asked.folders() == ["1", "2", "3"]
