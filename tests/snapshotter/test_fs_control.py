"""The control socket, the catalog behind it, and what is mounted."""

import os
import socket
import stat
import struct
from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from infra.errors import ImageInvalid, Invalid, PlatformError, StoreUnavailable
from infra.json_socket import MOST_MESSAGE_BYTES, JsonServer, receive, send
from snapshotter.fs import data_process
from snapshotter.fs.catalog import Catalog
from snapshotter.fs.control_client import ControlClient
from snapshotter.fs.data_process import DataProcess
from snapshotter.fs.layer_file import LayerFile
from snapshotter.fs.layout import Layout
from snapshotter.fs.linux import Mount, mounts_below, parsed_mounts
from snapshotter.fs.local_bytes import MemoryBytes
from snapshotter.fs.served_files import node_id


def refuse(question: Mapping[str, Any]) -> None:
    raise ImageInvalid(f"no {question['what']}")


def fail(question: Mapping[str, Any]) -> None:
    raise ZeroDivisionError


@pytest.fixture
def client(tmp_path: Path) -> ControlClient:
    path = tmp_path / "control.sock"
    verbs = {"echo": dict, "refuse": refuse, "fail": fail}
    JsonServer(path, lambda: nullcontext(verbs)).start()
    return ControlClient(path)


def test_verbs_answer_and_refuse_in_the_words_of_the_platform(client: ControlClient) -> None:
    assert client.ask("echo", a=[1, {"b": None}]) == {"verb": "echo", "a": [1, {"b": None}]}
    with pytest.raises(ImageInvalid, match="no layer"):
        client.ask("refuse", what="layer")
    with pytest.raises(Invalid, match="verb"):
        client.ask("unknown")
    with pytest.raises(PlatformError, match="log"):
        client.ask("fail")


def test_the_socket_is_for_its_owner(client: ControlClient, tmp_path: Path) -> None:
    mode = (tmp_path / "control.sock").stat().st_mode

    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">I", MOST_MESSAGE_BYTES + 1),
        struct.pack(">I", 2**32 - 1) + b"x",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 4) + b"\xff\xff\xff\xff",
        struct.pack(">I", 0),
        b"\0\0",
    ],
)
def test_nonsense_ends_its_connection_and_no_other(
    client: ControlClient, tmp_path: Path, sent: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(tmp_path / "control.sock"))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):  # bytes were left unread
            assert connection.recv(1) == b""

    assert client.ask("echo") == {"verb": "echo"}


def test_more_connections_than_there_is_room_for_wait_their_turn(
    client: ControlClient, tmp_path: Path
) -> None:
    idle = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    for connection in idle[:32]:
        connection.connect(str(tmp_path / "control.sock"))
        connection.settimeout(60)
        send(connection, {"verb": "echo"})
        assert receive(connection) is not None
    late = idle[32]
    late.settimeout(60)
    late.connect(str(tmp_path / "control.sock"))
    send(late, {"verb": "echo"})

    idle[0].close()

    assert receive(late) == {"result": {"verb": "echo"}}
    for connection in idle:
        connection.close()


def test_no_data_process_is_an_error_after_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        ControlClient(tmp_path / "nobody.sock", deadline_s=0).ask("list")


def test_a_message_that_is_too_large_is_not_sent(client: ControlClient) -> None:
    with pytest.raises(Invalid, match="bytes"):
        client.ask("echo", text="x" * MOST_MESSAGE_BYTES)


def test_a_catalog_is_what_the_next_process_finds(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    catalog.put("sha256:aa", {"index": "x"})
    catalog.put("sha256:bb", {})
    catalog.put("sha256:bb", {"index": "y"})
    catalog.put("sha256:cc", {})
    catalog.remove("sha256:cc")
    catalog.remove("sha256:cc")
    (tmp_path / "sha256:dd.json").write_text("{torn")
    (tmp_path / "sha256:ee.partial").write_text("{}")

    assert Catalog(tmp_path).all() == {"sha256:aa": {"index": "x"}, "sha256:bb": {"index": "y"}}
    with pytest.raises(Invalid):
        catalog.put("../escape", {})


def test_mounts_are_read_with_the_newest_first() -> None:
    mountinfo = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "60 22 0:39 / /run/a\\040b/files ro,nosuid - fuse.firstlight firstlight ro\n"
        "61 22 0:40 / /run/a\\040b/layers/x ro - erofs /run/a\\040b/files/x ro,user_xattr\n"
        "62 22 0:41 / /run/a\\040bc ro - tmpfs tmpfs rw\n"
    )

    below = mounts_below(Path("/run/a b"), parsed_mounts(mountinfo))

    assert below == [
        Mount(Path("/run/a b/layers/x"), "erofs", "/run/a b/files/x", "0:40"),
        Mount(Path("/run/a b/files"), "fuse.firstlight", "firstlight", "0:39"),
    ]


def test_a_layer_that_takes_long_to_be_opened_again_keeps_nobody_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, may_end, others = Layout(tmp_path), Event(), ("0", "2")
    layout.make()
    for name in ("0", "1", "2"):
        Catalog(layout.catalog).put(name, {"is_slow": name == "1"})

    def open_file(name: str, spec: Mapping[str, Any]) -> LayerFile:
        assert not spec["is_slow"] or may_end.wait(60)
        return LayerFile(name, b"metadata", MemoryBytes(b"stream"))

    def wait_for_others(opening: Any, timeout: float) -> Any:
        opened = list(opening)
        return wait([opened[int(name)] for name in others])._replace(not_done={opened[1]})

    monkeypatch.setattr(data_process, "wait", wait_for_others)
    with Path(os.devnull).open("r+b") as fuse:
        served = DataProcess(layout, fuse.fileno(), open_file, retry_s=0)
        served.serve()
        control = ControlClient(layout.control)
        assert control.ask("list") == sorted(others, key=node_id)

        may_end.set()
        assert control.ask("add", name="1", spec={"is_slow": True}) == len(b"metadata")
        assert sorted(control.ask("list")) == ["0", "1", "2"]
