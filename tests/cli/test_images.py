import sys

import pytest

from control_plane.cli import images
from tests.cli.conftest import Run

SAYS = "import sys; print(*sys.argv[1:]); print('error: no', file=sys.stderr); sys.exit(3)"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("pull", "host:1/a"), "pull host:1/a\n"),
        (("pull", "host:1/a", "--json"), "pull host:1/a --json\n"),
        (("ls",), "ls\n"),
        (("ls", "--json"), "ls --json\n"),
        (("rm", "host:1/a:b"), "rm host:1/a:b\n"),
        (("index", "host:1/a", "--json"), "index host:1/a --json\n"),
        (("convert", "host:1/a", "host:1/b"), "convert host:1/a host:1/b\n"),
    ],
)
def test_the_snapshotters_program_does_it_and_its_outcome_is_ours(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    asked: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.setattr(images, "PROGRAM", (sys.executable, "-c", SAYS))

    outcome = run("images", *asked)

    assert outcome.code == 3
    assert capfd.readouterr() == (told, "error: no\n")
