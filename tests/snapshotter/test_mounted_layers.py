"""Layers as programs see them: through the kernel's EROFS, over FUSE, with everything that dies."""

import hashlib
import os
import signal
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from infra.errors import ImageInvalid
from snapshotter.fs import linux
from snapshotter.fs.handover import held_too
from snapshotter.fs.image_mounts import MountImage, mount_by_file, mount_by_loop, mount_by_tree
from snapshotter.fs.layer_mounts import LayerMounts
from snapshotter.fs.layout import Layout
from snapshotter.fs.linux import MountFlag
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.erofs_writer import erofs_metadata
from tests.snapshotter.layer_entries import layer_entries
from tests.support.erofs import ErofsImage
from tests.support.layers import RunningLayers, local_layer, running_layers
from tests.support.mounts import mounts_below
from tests.support.processes import alive, until

pytestmark = pytest.mark.real

NAME = "sha256:" + "ab" * 32
BIG_BYTES = 24 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLayers]:
    with running_layers(tmp_path_factory.mktemp("layers") / "root") as running:
        yield running


@pytest.fixture
def layers(running: RunningLayers) -> Iterator[RunningLayers]:
    """A keeper that nobody kills, with no layers."""
    yield running
    for name in running.control.ask("list"):
        running.mounts().unmount(name)


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RunningLayers]:
    """A keeper of this test's own."""
    with running_layers(tmp_path / "root") as running:
        yield running


def tree_with_everything(root: Path) -> Path:
    """A folder of every kind of thing that a layer may have."""
    root.mkdir()
    (root / "empty").touch()
    (root / "folder/deep/er").mkdir(parents=True)
    for i in range(3000):
        (root / "folder" / f"{i:04}").write_bytes(b"%d" % i * (i % 7))
    (root / "folder" / ("n" * 200)).write_bytes(os.urandom(1_000_001))
    (root / "käse \udcff\n").write_bytes(b"not UTF-8")
    (root / "program").write_bytes(b"#!/bin/sh\n" * 100)
    (root / "program").chmod(0o4755)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    os.link(root / "program", root / "folder/same")
    (root / "link").symlink_to("folder/deep")
    (root / "long").symlink_to("x/" * 2000)
    os.mkfifo(root / "pipe", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.chown(root / "empty", 12345, 70_000, follow_symlinks=False)
    os.chown(root / "link", 4, 5, follow_symlinks=False)
    os.setxattr(root / "empty", "user.note", b"\0\xff" * 300)
    os.setxattr(root / "program", "trusted.x", b"1")
    # CAP_NET_BIND_SERVICE, permitted and effective: vfs_cap_data of version 2
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(root / "program", "security.capability", capability)
    for folder, folders, files in os.walk(root, topdown=False):
        for name in (*files, *folders):
            os.utime(Path(folder, name), (0, len(name) * 10_000_000), follow_symlinks=False)
    return root


def looked_at(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a program can ask of every path."""
    inodes: dict[int, str] = {}
    seen = {}
    for folder, folders, files in os.walk(root):
        for name in ("", *folders, *files):
            path = Path(folder, name)
            relative, status = str(path.relative_to(root)), path.lstat()
            is_link, is_file = stat.S_ISLNK(status.st_mode), stat.S_ISREG(status.st_mode)
            seen[relative] = (
                status.st_mode,
                (status.st_uid, status.st_gid),
                int(status.st_mtime) if relative != "." else 0,
                status.st_nlink,
                status.st_rdev,
                path.readlink() if is_link else path.read_bytes() if is_file else None,
                {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in sorted(os.listxattr(path, follow_symlinks=False))
                },
                inodes.setdefault(status.st_ino, relative) if is_file else None,
            )
    return seen


def packed(root: Path, tar: Path) -> Path:
    """The folder as GNU tar packs it, with every attribute."""
    command = ["tar", "--create", "--format=pax", "--xattrs", "--xattrs-include=*"]
    subprocess.run([*command, "--file", tar, "--directory", root, "."], check=True)
    return tar


def big_tar(tar: Path, content: bytes) -> Path:
    (tar.parent / "big").write_bytes(content)
    with tarfile.open(tar, "w") as archive:
        archive.add(tar.parent / "big", "big")
    return tar


def waited_bytes(layers: RunningLayers) -> int:
    """What the present data process was asked for and had not here."""
    return int(layers.control.ask("counts").get("waited_bytes", 0))


def kill_while_reads_wait(layers: RunningLayers) -> int:
    """Kills the data process as soon as it has reads without an answer; returns its id."""
    serving = layers.data_process()
    until(lambda: waited_bytes(layers), seconds=60, what="reads wait")
    serving.kill()
    serving.wait(60)
    return serving.pid


def test_a_mounted_layer_is_what_an_extraction_makes(layers: RunningLayers, tmp_path: Path) -> None:
    root = tree_with_everything(tmp_path / "tree")
    spec = local_layer(packed(root, tmp_path / "layer.tar"))
    ways = {"file:1": mount_by_file, "loop:1": mount_by_loop, "tree:1": mount_by_tree}

    points = {name: layers.mounts(way).mount(name, spec) for name, way in ways.items()}

    expected = looked_at(root)
    for point in points.values():
        assert looked_at(point) == expected
    for name in points:
        layers.mounts().unmount(name)
    assert layers.control.ask("list") == []
    assert mounts_below(layers.layout.root) == [str(layers.layout.files)]


@pytest.mark.parametrize("way", [mount_by_file, mount_by_tree])
def test_overlayfs_believes_the_whiteouts(
    layers: RunningLayers, tmp_path: Path, way: MountImage
) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for path in ("gone/file", "kept/old", "opaque/old", "replaced/old", "lost"):
        (lower / path).parent.mkdir(parents=True, exist_ok=True)
        (lower / path).write_text("lower")
    for path in (".wh.gone", "kept/new", "opaque/.wh..wh..opq", "opaque/new", ".wh.lost"):
        (upper / path).parent.mkdir(parents=True, exist_ok=True)
        (upper / path).write_text("upper")
    (upper / ".wh.replaced").touch()
    (upper / "replaced").mkdir()
    (upper / "replaced/new").write_text("upper")
    point = layers.mounts(way).mount(NAME, local_layer(packed(upper, tmp_path / "layer.tar")))
    (merged := tmp_path / "merged").mkdir()
    linux.mount("overlay", merged, "overlay", MountFlag.READ_ONLY, f"lowerdir={point}:{lower}")

    try:
        files = sorted(str(path.relative_to(merged)) for path in merged.rglob("*"))
    finally:
        linux.unmount(merged)

    assert files == [
        "kept",
        "kept/new",
        "kept/old",
        "opaque",
        "opaque/new",
        "replaced",
        "replaced/new",
    ]


def test_no_read_fails_when_the_data_process_is_killed_again_and_again(
    mortal: RunningLayers, tmp_path: Path
) -> None:
    content = os.urandom(BIG_BYTES)
    spec = local_layer(big_tar(tmp_path / "layer.tar", content), delay_s=0.05)
    origin_stalls = Path(spec["stop"])
    origin_stalls.touch()
    point = mortal.mounts().mount(NAME, spec)
    tree = mortal.mounts(mount_by_tree).mount("tree:1", spec)
    readers = [
        subprocess.Popen(["sha256sum", path], stdout=subprocess.PIPE)
        for path in (point / "big", tree / "big", mortal.layout.files / NAME)
    ]

    killed = [kill_while_reads_wait(mortal), kill_while_reads_wait(mortal)]
    origin_stalls.unlink()
    until(lambda: waited_bytes(mortal) > 2 << 20, seconds=60, what="the readers get on")
    origin_stalls.touch()
    killed += [kill_while_reads_wait(mortal), kill_while_reads_wait(mortal)]
    origin_stalls.unlink()

    said = [reader.communicate(timeout=100)[0].split()[0].decode() for reader in readers]
    image = Path(spec["metadata"]).read_bytes() + Path(spec["stream"]).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert said == [digest, digest, hashlib.sha256(image).hexdigest()]
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert len(set(killed)) == 4


def test_a_new_keeper_takes_away_what_a_dead_one_left(
    mortal: RunningLayers, tmp_path: Path
) -> None:
    spec = local_layer(big_tar(tmp_path / "layer.tar", b"light"))
    point = mortal.mounts().mount(NAME, spec)
    serving = mortal.data_process()
    mortal.end(signal.SIGKILL)
    until(lambda: not alive([serving]), seconds=60, what="the data process ends too")
    with pytest.raises(OSError):
        (point / "big").read_bytes()

    mortal.start()

    assert mounts_below(mortal.layout.root) == [str(mortal.layout.files)]
    assert mortal.control.ask("list") == [NAME]  # the catalog outlives both
    assert (mortal.mounts().mount(NAME, spec) / "big").read_bytes() == b"light"
    assert mortal.end(signal.SIGTERM) == 0
    assert mounts_below(mortal.layout.root) == []


def test_no_read_fails_when_keepers_are_killed_whose_folder_somebody_holds(
    mortal: RunningLayers, tmp_path: Path
) -> None:
    content = os.urandom(BIG_BYTES)
    spec = local_layer(big_tar(tmp_path / "layer.tar", content), delay_s=0.05)
    point = mortal.mounts().mount(NAME, spec)
    mounted = mounts_below(mortal.layout.root)
    readers = [
        subprocess.Popen(["sha256sum", path], stdout=subprocess.PIPE)
        for path in (point / "big", mortal.layout.files / NAME)
    ]

    for _ in range(3):
        assert mortal.process is not None
        until(lambda: waited_bytes(mortal) > 0, seconds=60, what="this one is read from")
        held = held_too(mortal.process.pid)
        mortal.end(signal.SIGKILL)
        mortal.start(held)
        os.close(held)

    said = [reader.communicate(timeout=100)[0].split()[0].decode() for reader in readers]
    image = Path(spec["metadata"]).read_bytes() + Path(spec["stream"]).read_bytes()
    assert said == [hashlib.sha256(each).hexdigest() for each in (content, image)]
    assert mounts_below(mortal.layout.root) == mounted


def test_a_folder_that_is_gone_is_made_anew_whoever_holds_it(
    mortal: RunningLayers, tmp_path: Path
) -> None:
    spec = local_layer(big_tar(tmp_path / "layer.tar", b"light"))
    point = mortal.mounts().mount(NAME, spec)
    assert mortal.process is not None
    held = held_too(mortal.process.pid)
    with (point / "big").open("rb") as reader:
        mortal.end(signal.SIGTERM)

        mortal.start(held)

        os.close(held)
        with pytest.raises(OSError):
            reader.read()
    assert (mortal.mounts().mount(NAME, spec) / "big").read_bytes() == b"light"


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=layer_entries())
def test_the_kernel_reads_an_image_as_the_format_says(
    layers: RunningLayers, tmp_path: Path, entries: list[Entry]
) -> None:
    try:
        metadata = erofs_metadata(entries)
    except ImageInvalid:
        return
    (tmp_path / "metadata").write_bytes(metadata)
    (tmp_path / "stream").touch()
    spec = {"metadata": str(tmp_path / "metadata"), "stream": str(tmp_path / "stream")}
    point = layers.mounts(mount_by_file).mount(NAME, spec)
    paths = {path: point / os.fsdecode(path) for path, _ in ErofsImage(metadata).walk()}

    try:
        seen = {path: at.lstat() for path, at in paths.items()}
        links = {path: at.readlink() for path, at in paths.items() if at.is_symlink()}
        names = sum(
            len(list(paths[path].iterdir()))
            for path, status in seen.items()
            if stat.S_ISDIR(status.st_mode)
        )
    finally:
        layers.mounts().unmount(NAME)

    assert names == len(seen) - 1
    for path, found in ErofsImage(metadata).walk():
        status = seen[path]
        assert status.st_mode == found.st_mode
        assert (status.st_uid, status.st_gid) == (found.uid, found.gid)
        assert (int(status.st_mtime), status.st_nlink) == (found.mtime, found.links)
        assert status.st_size == found.size or stat.S_ISDIR(status.st_mode)
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == found.device
        assert path not in links or os.fsencode(links[path]) == posix(found.target)


def posix(target: bytes) -> bytes:
    """As pathlib spells the text of a link."""
    return os.fsencode(Path(os.fsdecode(target)))


@pytest.mark.parametrize("way", [mount_by_file, mount_by_tree])
def test_a_file_may_be_larger_than_four_gigabytes(
    layers: RunningLayers, tmp_path: Path, way: MountImage
) -> None:
    size = 5 * (1 << 30) + 3
    (tmp_path / "metadata").write_bytes(
        erofs_metadata([Entry("huge", Kind.FILE, 0o644, size=size, offset=512)])
    )
    with (tmp_path / "stream").open("wb") as stream:  # sparse
        stream.truncate(size + 512 - 3)
        stream.seek(0, os.SEEK_END)
        stream.write(b"end")
    spec = {"metadata": str(tmp_path / "metadata"), "stream": str(tmp_path / "stream")}
    huge = layers.mounts(way).mount(NAME, spec) / "huge"

    with huge.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        assert file.read() == bytes(5) + b"end"
        assert file.tell() == size


def test_a_layer_is_mounted_once_though_its_folder_is_reached_by_a_link(
    layers: RunningLayers, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(layers.layout.root)
    by_link = LayerMounts(Layout(tmp_path / "link"), layers.control)
    spec = local_layer(big_tar(tmp_path / "layer.tar", b"light"))

    points = [mounts.mount(NAME, spec) for mounts in (by_link, layers.mounts(), by_link)]

    assert mounts_below(layers.layout.root) == [str(points[0]), str(layers.layout.files)]
    assert by_link.mounted() == [NAME]
    by_link.unmount(NAME)
    by_link.unmount(NAME)
    assert mounts_below(layers.layout.root) == [str(layers.layout.files)]


def test_a_folder_has_one_keeper(mortal: RunningLayers, tmp_path: Path) -> None:
    second = RunningLayers(mortal.layout)
    first_serves = mortal.data_process().pid

    second.start()  # the answer is that of the first one's data process

    assert second.process is not None
    assert second.process.wait(60) == 1
    assert mortal.data_process().pid == first_serves


def test_a_reader_that_is_killed_waits_for_no_origin(mortal: RunningLayers, tmp_path: Path) -> None:
    spec = local_layer(big_tar(tmp_path / "layer.tar", os.urandom(1 << 20)), delay_s=0)
    point = mortal.mounts().mount(NAME, spec)
    Path(spec["stop"]).touch()
    readers = [
        subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL)
        for path in (point / "big", mortal.layout.files / NAME)
    ]
    until(lambda: waited_bytes(mortal), seconds=60, what="the readers wait")

    for reader in readers:
        reader.terminate()

    assert [reader.wait(60) for reader in readers] == [-signal.SIGTERM] * 2
    Path(spec["stop"]).unlink()
    assert (point / "big").stat().st_size == 1 << 20
    assert (point / "big").read_bytes() == (tmp_path / "big").read_bytes()


def test_pages_of_a_layer_are_not_kept_a_second_time(layers: RunningLayers, tmp_path: Path) -> None:
    """Where the kernel takes `directio`: what EROFS keeps the FUSE file does not."""
    spec = local_layer(big_tar(tmp_path / "layer.tar", os.urandom(BIG_BYTES)))
    point = layers.mounts().mount(NAME, spec)

    assert len((point / "big").read_bytes()) == BIG_BYTES

    kept = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", layers.layout.files / NAME],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert int(kept.stdout) < BIG_BYTES / 8
    before = layers.control.ask("counts")
    assert len((point / "big").read_bytes()) == BIG_BYTES
    assert layers.control.ask("counts") == before  # what is warm asks nobody


def test_what_is_no_image_is_refused_and_leaves_nothing(
    layers: RunningLayers, tmp_path: Path
) -> None:
    (tmp_path / "noise").write_bytes(os.urandom(8192))
    spec = {"metadata": str(tmp_path / "noise"), "stream": str(tmp_path / "noise")}

    with pytest.raises(ImageInvalid):
        layers.mounts().mount(NAME, spec)

    assert mounts_below(layers.layout.root) == [str(layers.layout.files)]
