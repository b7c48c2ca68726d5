"""Every variable and output is typed and described, and the READMEs say the same."""

import re
from pathlib import Path

import pytest

from tests.terraform.tables import ROOT, blocks, description, folders, kind_of, with_tables

each_folder = pytest.mark.parametrize("folder", folders(), ids=lambda it: str(it.relative_to(ROOT)))


@each_folder
def test_variables_are_typed_and_described_and_outputs_described(folder: Path) -> None:
    variables, outputs = blocks(folder, "variable"), blocks(folder, "output")

    assert [name for name, it in variables.items() if not (kind_of(it) and description(it))] == []
    assert [name for name, it in outputs.items() if not description(it)] == []


@each_folder
def test_the_readme_has_the_tables_of_its_folder(folder: Path) -> None:
    readme = (folder / "README.md").read_text()

    assert with_tables(readme, folder) == readme, "python -m tests.terraform.tables writes them"


@each_folder
def test_every_variable_is_used(folder: Path) -> None:
    text = "\n".join(path.read_text() for path in folder.glob("*.tf"))

    assert [it for it in blocks(folder, "variable") if not re.search(rf"\bvar\.{it}\b", text)] == []


@pytest.mark.parametrize("folder", sorted((ROOT / "modules").glob("*/")), ids=lambda it: it.name)
def test_a_module_has_no_provider_and_needs_only_that_of_aws(folder: Path) -> None:
    text = "\n".join(path.read_text() for path in folder.glob("*.tf"))

    assert not re.search(r"^provider ", text, re.M)
    assert re.findall(r'source\s+= "(hashicorp/.+)"', text) == ["hashicorp/aws"]


@each_folder
def test_variables_and_outputs_stand_in_their_own_files(folder: Path) -> None:
    for path in folder.glob("*.tf"):
        if path.name not in ("variables.tf", "outputs.tf"):
            assert not re.search(r"^(variable|output) ", path.read_text(), re.M), path.name


def test_no_policy_may_write_to_everything() -> None:
    reading = re.compile(r"^[a-z0-9]+:(Describe|Get|List)[A-Za-z]*$")
    allowed: list[str] = []
    for path in sorted(ROOT.glob("modules/*/*.tf")):
        for block in re.findall(r"^  statement \{\n(.*?)^  \}\n", path.read_text(), re.M | re.S):
            if '"*"' not in "".join(re.findall(r"resources\s+= \[(.*?)\]", block, re.S)):
                continue
            actions = re.findall(r'"([a-z0-9]+:[^"]+)"', block.split("principals")[0])
            is_key_policy = path.name == "key.tf"
            allowed += [it for it in actions if not (is_key_policy or reading.match(it))]

    assert allowed == []
