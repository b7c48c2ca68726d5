"""Terraform as it is on this machine, and what it makes of the minimal example."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.terraform.applied import Applied, apply
from tests.terraform.tool import Terraform, find


@pytest.fixture(scope="session")
def terraform(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return find(environment, tmp_path_factory.mktemp("terraform"))


@pytest.fixture(scope="module")
def applied(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Applied]:
    folder = tmp_path_factory.mktemp("applied")
    with ExitStack() as stack:
        yield apply(find(environment, folder), folder, stack)
