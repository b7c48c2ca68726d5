"""Values in S3, or a store that speaks its protocol."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from infra.errors import DependencyMissing, StoreUnavailable
from infra.objectstore.port import checked
from infra.s3_client import s3_client


class S3Objects:
    """Below `s3://bucket/prefix`; credentials and region come from where boto3 finds them.

    Raises DependencyMissing where there is no boto3.
    """

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None = None) -> None:
        if find_spec("boto3") is None:
            raise DependencyMissing(
                "results in S3 need boto3", hint="pip install 'firstlight[aws]'"
            )
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._endpoint = endpoint

    async def put(self, key: str, data: bytes) -> None:
        await asyncio.to_thread(self._call, "put_object", key, Body=data)

    async def get(self, key: str) -> bytes | None:
        return await asyncio.to_thread(self._get, key)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._call, "delete_object", key)

    async def keys(self, folder: str, *, after: str, count: int) -> tuple[str, ...]:
        return await asyncio.to_thread(self._keys, folder, after, count)

    def _keys(self, folder: str, after: str, count: int) -> tuple[str, ...]:
        start = self._address(after)["Key"] if after else ""
        prefix = self._address(folder)["Key"] + "/"
        with _s3_errors():
            found = self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, StartAfter=start, MaxKeys=count
            )
        names = (it["Key"].removeprefix(prefix) for it in found.get("Contents", ()))
        return tuple(f"{folder}/{name}" for name in names)

    def _get(self, key: str) -> bytes | None:
        with _s3_errors():
            try:
                found = self._client.get_object(**self._address(key))
            except self._client.exceptions.NoSuchKey:
                return None
            return bytes(found["Body"].read())

    def _call(self, operation: str, key: str, **more: Any) -> None:
        with _s3_errors():
            getattr(self._client, operation)(**self._address(key), **more)

    def _address(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{checked(key)}".lstrip("/")}

    @cached_property
    def _client(self) -> Any:
        return s3_client(self._endpoint)


@contextmanager
def _s3_errors() -> Iterator[None]:
    """Turns what boto3 raises into ours."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, OSError) as error:
        raise StoreUnavailable(
            f"the store of results does not answer: {error}", retry_after_s=5
        ) from error
