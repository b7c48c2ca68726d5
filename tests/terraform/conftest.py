"""Terraform as it is on this machine, and what it makes of the minimal example."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.terraform.applied import Applied, apply
from tests.terraform.tool import Terraform, find


@pytest.fixture(scope="session")
def terraform(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return find(environment, tmp_path_factory.mktemp("terraform"))


@pytest.fixture(scope="session", autouse=True)
def applying(
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Future[Applied] | None]:
    """Begins `terraform apply` where a test will want it: its minutes are mostly waiting. What is
    missing for it on this machine is told to that test alone."""
    if not any("applied" in getattr(it, "fixturenames", ()) for it in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("applied")
    with ExitStack() as stack, ThreadPoolExecutor(1, thread_name_prefix="terraform") as thread:
        yield thread.submit(lambda: apply(find(environment, folder), folder, stack))


@pytest.fixture(scope="session")
def applied(applying: Future[Applied]) -> Applied:
    return applying.result()
