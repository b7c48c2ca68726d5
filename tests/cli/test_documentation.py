"""What is not documented fails here: verbs, arguments and flags of the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from control_plane.main import app

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text()
SECTIONS = {section.splitlines()[0]: section for section in ("\n" + PAGE).split("\n## ") if section}


def verbs(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every verb with its whole path, groups opened."""
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, f"{path} {name}")
    if not hasattr(command, "commands"):
        yield path, command


VERBS = dict(verbs(get_command(app), "platform"))


def heading(path: str, command: Any) -> str:
    arguments = [it.name.upper() for it in command.params if it.param_type_name == "argument"]
    return " ".join([path, *arguments])


@pytest.mark.parametrize("path", VERBS)
def test_every_verb_has_a_section_with_its_arguments(path: str) -> None:
    assert heading(path, VERBS[path]) in SECTIONS


@pytest.mark.parametrize("path", VERBS)
def test_every_flag_is_in_its_verbs_section(path: str) -> None:
    section = SECTIONS[heading(path, VERBS[path])]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {name.strip(" `") for row in rows for name in row.split(",")}

    flags = {
        name
        for parameter in VERBS[path].params
        if parameter.param_type_name == "option"
        for name in [*parameter.opts, *parameter.secondary_opts]
    }

    assert documented == flags - {"--help"}


def test_the_page_describes_no_verb_that_is_gone() -> None:
    described = {title for title in SECTIONS if title.startswith("platform ")}

    assert described == {heading(path, command) for path, command in VERBS.items()}


def test_flags_of_the_program_itself_are_described() -> None:
    for parameter in get_command(app).params:
        assert parameter.opts[0] in PAGE
