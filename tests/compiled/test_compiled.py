"""The compiled hot modules: that they are these sources, and do what the interpreted ones do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane.compiled import library

SAME_TESTS = (
    *("tests/activator", "tests/api", "tests/tenancy", "tests/museum", "tests/queue"),
    *("tests/deployments", "tests/fleet/test_timeline.py", "tests/autoscaler"),
    # Of these no line is compiled.
    *("--ignore=tests/queue/test_objects.py", "--ignore=tests/deployments/test_images.py"),
)


def test_every_hot_module_has_a_source() -> None:
    assert len(set(library.HOT_MODULES)) == len(library.HOT_MODULES)
    for name in library.HOT_MODULES:
        assert (library.ROOT / Path(*name.split("."))).with_suffix(".py").is_file(), name


def test_what_was_compiled_of_other_sources_is_not_used(tmp_path: Path) -> None:
    source, built = tmp_path / "infra" / "clock.py", tmp_path / "built"
    source.parent.mkdir()
    source.write_text("one")
    made = library.folder(tmp_path, built)
    assert library.find(tmp_path, built) is None, "it was not built"
    made.mkdir(parents=True)
    assert library.find(tmp_path, built) == made

    os.utime(source, ns=(1, 1))
    assert library.find(tmp_path, built) == made, "a copy"
    source.write_text("two")
    assert library.find(tmp_path, built) is None
    source.write_text("one")
    assert library.find(tmp_path, built) == made
    (source.parent / "more.py").touch()
    assert library.find(tmp_path, built) is None


def test_sources_are_not_read_again_while_they_look_as_before(tmp_path: Path) -> None:
    source, built = tmp_path / "infra" / "clock.py", tmp_path / "built"
    source.parent.mkdir()
    source.write_text("one")
    os.utime(source, ns=(1, 1))
    made = library.folder(tmp_path, built)
    made.mkdir(parents=True)
    assert library.find(tmp_path, built) == made

    source.write_text("two")
    os.utime(source, ns=(1, 1))

    assert library.find(tmp_path, built) == made


def test_a_stamp_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    source, built = tmp_path / "infra" / "clock.py", tmp_path / "built"
    source.parent.mkdir()
    source.write_text("one")
    made = library.folder(tmp_path, built)
    (made / "stamp").mkdir(parents=True)  # as one of another user is, for root too

    assert library.find(tmp_path, built) == made


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_same_tests_pass_over_the_compiled_modules(environment: dict[str, str]) -> None:
    assert library.find() is not None, "they are not compiled: run scripts/install"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not real", *SAME_TESTS]
    parallel = ["-n", "2", "--dist", "loadfile"]

    done = subprocess.run(
        [*command, *parallel, "-p", "no:cacheprovider", "-p", "tests.support.compiled"],
        cwd=library.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
