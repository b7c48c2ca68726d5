"""A log that cannot be written breaks nobody who writes it; a log says nothing it should not."""

import errno
import io
import json
from collections.abc import Iterator

import pytest
import structlog

from infra import logs


class Full(io.StringIO):
    """A file on a disk that is full for a while."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_what_a_full_disk_does_not_take_is_lost_and_the_rest_is_written() -> None:
    disk = Full()
    logs.configure(as_json=True, stream=disk)
    log = structlog.get_logger()

    log.info("lost")
    log.warning("lost")
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("lost")
    disk.is_full = False
    log.error("kept", seconds=1.5)

    [line] = disk.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["seconds"]) == ("kept", "error", 1.5)


def test_a_reader_that_is_gone_is_no_error_of_who_writes() -> None:
    closed = io.StringIO()
    logs.configure(as_json=False, stream=closed)
    closed.close()
    structlog.get_logger().info("nobody hears it")


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_shows_where_and_no_values(as_json: bool) -> None:
    stream = io.StringIO()
    logs.configure(as_json=as_json, stream=stream)
    key = "".join(["fl_", "secret"])

    try:
        _fails(key)
    except ValueError:
        structlog.get_logger().exception("request.failed")

    assert "_fails" in stream.getvalue()
    assert key not in stream.getvalue()


def _fails(authorization: str) -> None:
    raise ValueError(len(authorization))
