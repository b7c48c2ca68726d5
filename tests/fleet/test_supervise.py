"""Long-running tasks that are never left dangling."""

import asyncio

import pytest
from structlog.testing import capture_logs

from infra.errors import StoreUnavailable
from infra.supervise import repeat
from infra.virtual_time import run_virtual


def test_whatever_goes_wrong_writing_behind_goes_on():
    written = []

    async def write() -> None:
        written.append(asyncio.get_running_loop().time())
        if len(written) == 1:
            raise StoreUnavailable("away")
        if len(written) == 2:
            raise KeyError("a defect")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(9):
                await repeat(write, every_s=2, on_failure="usage.unwritten")

    with capture_logs() as logs:
        run_virtual(main())

    assert [at - written[0] for at in written] == pytest.approx([0, 2, 4, 6])
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("usage.unwritten", "warning"),
        ("usage.unwritten", "error"),
    ]
