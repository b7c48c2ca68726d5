"""What Terraform itself says of our modules and examples."""

import shutil
from pathlib import Path

import pytest

from tests.terraform.tool import ROOT, Terraform

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]


def test_every_file_has_the_canonical_format(terraform: Terraform) -> None:
    assert terraform("fmt", "-check", "-recursive", "-diff") == ""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Terraform writes lock files beside what it reads."""
    target = tmp_path_factory.mktemp("validate") / "terraform"
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".terraform*"))
    return target


def test_the_complete_example_has_every_module() -> None:
    said = (ROOT / "examples/complete/main.tf").read_text()
    for module in ROOT.glob("modules/*/"):
        assert f'"../../modules/{module.name}"' in said


@pytest.mark.parametrize("example", ["complete", "spot_failover"])  # the minimal one is applied
def test_it_is_valid_with_all_its_modules(
    example: str, terraform: Terraform, copy: Path, tmp_path: Path
) -> None:
    here = terraform.inside(copy / "examples" / example, tmp_path)
    here.init()

    assert "Success!" in here("validate")


def test_modules_and_examples_behave_as_their_tests_say(
    terraform: Terraform, copy: Path, tmp_path: Path
) -> None:
    here = terraform.inside(copy, tmp_path)
    here.init()

    assert ", 0 failed." in here("test")
