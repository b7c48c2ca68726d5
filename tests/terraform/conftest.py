"""Terraform as it is on this machine."""

import pytest

from tests.terraform.tool import Terraform, find


@pytest.fixture(scope="session")
def terraform(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return find(environment, tmp_path_factory.mktemp("terraform"))
