"""The catalogue of the museum: each exhibit once, with tests that exist."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
EXHIBITS = range(1, 21)
ROW = re.compile(r"\| (\d+) \| (.+?) \| .+? \| (.+?) \|")
TEST = re.compile(r"`([\w./]+)::(\w+)`")


def rows() -> list[tuple[int, str, list[tuple[str, str]]]]:
    """Number, where it happened, and the tests of every row of the catalogue."""
    found = ROW.findall((HERE / "README.md").read_text())
    return [(int(number), where, TEST.findall(tests)) for number, where, tests in found]


def exhibits_in(path: Path) -> dict[str, str]:
    """The tests of a module by name, with the first lines of their docstrings."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        it.name: ast.get_docstring(it) or ""
        for it in ast.parse(path.read_text()).body
        if isinstance(it, functions) and it.name.startswith("test_")
    }


def test_every_exhibit_is_listed_once_with_a_test() -> None:
    assert [number for number, _, _ in rows()] == list(EXHIBITS)
    assert all(tests for _, _, tests in rows())


def test_every_test_that_is_named_exists() -> None:
    for number, _, tests in rows():
        for path, name in tests:
            assert name in exhibits_in(HERE / path), f"{number}: there is no {path}::{name}"


def test_every_test_of_this_folder_is_listed_and_names_its_bug() -> None:
    listed = {name: where for _, where, tests in rows() for _, name in tests}
    for path in HERE.glob("test_*.py"):
        if path.name == Path(__file__).name:
            continue
        for name, told in exhibits_in(path).items():
            assert name in listed, f"{path.name}::{name} is in no row"
            assert told.startswith(re.split(r"[ ,]", listed[name])[0]), f"{name}: {told}"
