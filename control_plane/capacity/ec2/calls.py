"""Calls of AWS: in threads, few at a time, backed off where AWS says so, with errors of ours."""

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog

from control_plane.capacity.ec2.refusals import error_of
from infra.backoff import Backoff
from infra.errors import DependencyMissing, PlatformError, ProviderUnavailable, Throttled

log = structlog.get_logger()

_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Clients:
    """boto3's clients of the three services that are used."""

    autoscaling: Any
    ec2: Any
    sqs: Any


def aws_clients() -> Clients:
    """Region, credentials and endpoints come from where boto3 finds them.

    Nothing is repeated by botocore: `Calls` does that. Raises DependencyMissing without boto3,
    BadSpec without a region.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import NoRegionError
    except ImportError as error:
        raise DependencyMissing(
            "machines of EC2 need boto3", hint="pip install 'firstlight[aws]'"
        ) from error
    config = Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"mode": "standard", "total_max_attempts": 1},
        user_agent_extra="firstlight",
    )
    session = boto3.session.Session()
    try:
        return Clients(
            session.client("autoscaling", config=config),
            session.client("ec2", config=config),
            session.client("sqs", config=config),
        )
    except NoRegionError as error:
        raise error_of("NoRegion", "no region is set: AWS_REGION") from error


class Calls:
    """One call a time and thread of `threads`."""

    def __init__(
        self,
        clients: Clients,
        threads: Executor,
        *,
        backoff: Backoff = Backoff(first_s=0.5, most_s=20.0),  # noqa: B008 - frozen value
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.clients = clients
        self._threads = threads
        self._backoff = backoff
        self._jitter = jitter

    async def __call__(self, operation: Callable[..., Any], **arguments: Any) -> Any:
        """The answer of one operation, such as `clients.ec2.describe_instances`.

        Throttled, it is tried again a few times. Raises what `error_of` makes of AWS's code, and
        ProviderUnavailable where AWS cannot be reached: whether it was done is then not known.
        """
        for failures in range(1, _TRIES + 1):
            try:
                return await self._once(operation, arguments)
            except Throttled as error:
                if failures == _TRIES:
                    raise
                wait_s = self._backoff.delay_s(failures, jitter=self._jitter())
                log.info("aws.throttled", detail=error.detail, retry_s=wait_s)
                await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    async def pages(self, operation: str, client: Any, key: str, **arguments: Any) -> list[Any]:
        """What all pages of an operation list under `key`."""
        found: list[Any] = []
        token: dict[str, str] = {}
        while True:
            answer = await self(getattr(client, operation), **arguments, **token)
            found += answer.get(key) or []
            if not answer.get("NextToken"):
                return found
            token = {"NextToken": answer["NextToken"]}

    async def _once(self, operation: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(operation, **arguments))
        except PlatformError:
            raise
        except Exception as error:
            raise _translated(error) from error


def _translated(error: Exception) -> PlatformError:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    if isinstance(error, ClientError):
        facts = error.response.get("Error", {})
        return error_of(facts.get("Code", "Unknown"), facts.get("Message", ""))
    if isinstance(error, NoCredentialsError):
        return error_of("NoCredentials", "AWS knows nobody here")
    if isinstance(error, BotoCoreError):
        return ProviderUnavailable(f"AWS cannot be reached: {error}", retry_after_s=5)
    raise error
