"""What the platform's process says of itself while it serves."""

import json
import os
from pathlib import Path

import pytest

from control_plane.process import announce
from infra.errors import Conflict


def test_its_address_stands_in_its_folder(tmp_path: Path) -> None:
    announcement = announce(tmp_path, "http://127.0.0.1:8470")

    assert announcement == tmp_path / "endpoint.json"
    assert json.loads(announcement.read_text()) == {
        "url": "http://127.0.0.1:8470",
        "pid": os.getpid(),
    }


def test_a_folder_that_takes_no_file_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "endpoint.new").mkdir()  # as a full disk does, for root too

    with pytest.raises(Conflict, match=r"cannot write .*endpoint\.json: ") as refused:
        announce(tmp_path, "http://127.0.0.1:8470")

    assert refused.value.hint == "is there room on its disk?"
