import errno
import os
import socket
from pathlib import Path

import pytest

from infra.contracts.image_pull import PullFailed, PullOrder, pull_line
from infra.errors import NotFound
from snapshotter.containerd.pull_report import Report
from snapshotter.containerd.pull_server import Pull, PullServer

ORDER = PullOrder(reference="r/a", containerd=Path("/c"), namespace="n", snapshotter="s")


def answer(folder: Path, pull: Pull, said: bytes) -> PullFailed:
    path = folder / "pull.sock"
    PullServer(path, pull).start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(said + b"\n")
        line = pull_line.validate_json(client.makefile("rb").readline())
    assert isinstance(line, PullFailed)
    assert path.stat().st_mode & 0o777 == 0o600
    return line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NotFound("r/a is not in the registry"), "is not in the registry"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "log has the reason"),
        (ValueError("surprise"), "log has the reason"),
    ],
)
def test_who_waits_hears_that_a_pull_failed(tmp_path, error, said):
    def pull(order: PullOrder, report: Report) -> None:
        assert order == ORDER
        raise error

    assert said in answer(tmp_path, pull, ORDER.model_dump_json().encode()).detail


@pytest.mark.parametrize("order", [b"", b"{}", b"\xff\xfe", b"[" * 5000])
def test_what_is_no_order_is_refused(tmp_path, order):
    def pull(order: PullOrder, report: Report) -> None:
        raise AssertionError("nobody ordered it")

    assert answer(tmp_path, pull, order).detail == "this is no order"
