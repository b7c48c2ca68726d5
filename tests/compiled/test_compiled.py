"""The compiled hot modules: that they are these sources, and do what the interpreted ones do."""

import subprocess
import sys
from pathlib import Path

import pytest

from control_plane.compiled import library

SAME_TESTS = (
    *("tests/activator", "tests/api", "tests/tenancy", "tests/museum", "tests/queue"),
    *("tests/deployments", "tests/fleet/test_timeline.py", "tests/autoscaler"),
)


def test_every_hot_module_has_a_source() -> None:
    assert len(set(library.HOT_MODULES)) == len(library.HOT_MODULES)
    for name in library.HOT_MODULES:
        assert (library.ROOT / Path(*name.split("."))).with_suffix(".py").is_file(), name


def test_what_was_compiled_of_other_sources_is_not_used(tmp_path: Path) -> None:
    source = tmp_path / "infra" / "clock.py"
    source.parent.mkdir()
    source.write_text("one")
    before = library.folder(tmp_path)

    source.write_text("two")
    changed = library.folder(tmp_path)
    source.write_text("one")

    assert before != changed
    assert library.folder(tmp_path) == before


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_same_tests_pass_over_the_compiled_modules(environment: dict[str, str]) -> None:
    assert library.folder().is_dir(), "they are not compiled: run scripts/install"
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
