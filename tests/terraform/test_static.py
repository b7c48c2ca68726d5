"""What Terraform itself says of our modules and examples."""

import shutil
from pathlib import Path

import pytest

from tests.terraform.tool import ROOT, Terraform

pytestmark = pytest.mark.real

FOLDERS = sorted(
    it.relative_to(ROOT) for kind in ("modules", "examples") for it in ROOT.glob(f"{kind}/*/")
)


def test_every_file_has_the_canonical_format(terraform: Terraform) -> None:
    assert terraform("fmt", "-check", "-recursive", "-diff") == ""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Terraform writes lock files beside what it reads."""
    target = tmp_path_factory.mktemp("validate") / "terraform"
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".terraform*"))
    return target


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_it_is_valid(folder: Path, terraform: Terraform, copy: Path, tmp_path: Path) -> None:
    here = terraform.inside(copy / folder, tmp_path)
    here.init()

    assert "Success!" in here("validate")


def test_modules_and_examples_behave_as_their_tests_say(
    terraform: Terraform, copy: Path, tmp_path: Path
) -> None:
    here = terraform.inside(copy, tmp_path)
    here.init()

    assert ", 0 failed." in here("test")
