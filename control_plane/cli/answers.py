"""What the platform's answers mean: a value, or a CommandFailed in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from control_plane.cli.failure import CommandFailed, from_problem
from control_plane.cli.sse import Comment, Event
from infra.contracts.problem import Problem

CONNECT_S = 5.0
MAX_PROBLEM_BYTES = 1 << 20

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer to an invocation."""

    body: str
    request_id: str
    was_cold: bool


@dataclass(frozen=True, slots=True)
class Stream:
    """A streaming answer whose head has come."""

    items: Iterator[Comment | Event]
    request_id: str
    was_cold: bool


class _Listed(BaseModel, Generic[Body]):
    data: list[Body]


def raise_problem(response: httpx.Response) -> None:
    """Raises what an error response says."""
    if response.is_success:
        return
    content = response.read()[:MAX_PROBLEM_BYTES]
    try:
        problem = Problem.model_validate_json(content)
    except ValidationError:
        where = f"{response.request.method} {response.request.url}"
        raise CommandFailed(
            f"{where} answered {response.status_code} without saying why",
            hint="is this address the platform's?",
        ) from None
    if response.status_code == 401 and problem.hint is None:
        raise CommandFailed(problem.detail, hint="set PLATFORM_API_KEY to the platform's key")
    raise from_problem(problem)


def parsed(contract: type[Body], content: bytes) -> Body:
    try:
        return contract.model_validate_json(content)
    except ValidationError as error:
        raise CommandFailed(
            f"the platform's answer cannot be read: {error.errors(include_url=False)[0]['msg']}",
            hint="are the platform and this command of one version?",
        ) from error


def listed(contract: type[Body], content: bytes) -> list[Body]:
    """The values of an answer that is a list."""
    return parsed(_Listed[contract], content).data  # type: ignore[valid-type]


def origin(response: httpx.Response) -> tuple[str, bool]:
    """The id of the request that a generation answers, and whether it met no replica."""
    was_cold = str(response.headers.get("Firstlight-Cold-Start")).lower() == "true"
    return str(response.headers.get("Firstlight-Request-Id", "")), was_cold


@contextmanager
def http_errors(url: str) -> Iterator[None]:
    """Turns what httpx raises into words."""
    try:
        yield
    except httpx.ConnectError as error:
        raise CommandFailed(
            f"nothing answers at {url}", hint="start it with `platform up`"
        ) from error
    except httpx.ConnectTimeout as error:
        raise CommandFailed(
            f"{url} cannot be reached: no connection after {CONNECT_S:.0f} s",
            hint="check PLATFORM_URL",
        ) from error
    except httpx.TimeoutException as error:
        raise CommandFailed(f"{url} did not answer in time") from error
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
        raise CommandFailed(
            "the platform closed the connection before its answer was complete"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandFailed(f"{url}: {error}") from error
