"""Models in S3 or a store that speaks its protocol: `s3://bucket/prefix`, pinned by ETag."""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

from infra.contracts.revision import ModelFacts, ResolvedSource, SourceFile
from infra.errors import (
    DependencyMissing,
    PlatformError,
    SourceChanged,
    SourceInvalid,
    SourceUnavailable,
)
from infra.s3_client import s3_client
from infra.sources.digests import content_digest
from infra.sources.http_ranges import HttpRanges, Location
from infra.sources.model_files import MAX_LISTED, checked_name, describe_model
from infra.sources.patience import PATIENT, Patience
from infra.sources.port import OnBytes, RangeReader, Remote

URI: Final = re.compile(r"s3://(?P<bucket>[^/]+)(?:/(?P<prefix>.*))?")
PLAIN_MD5: Final = re.compile(r"[0-9a-f]{32}")
CHUNK_BYTES: Final = 4 << 20
Json = dict[str, Any]
UNENCRYPTED: Final = {None, "AES256"}  # where an ETag is the content's MD5
URL_LIVES_S: Final = 3600


class S3Source:
    """Credentials and region come from where boto3 finds them; `endpoint` is for other stores."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        patience: Patience = PATIENT,
    ) -> None:
        self._endpoint = endpoint
        self._patience = patience

    @cached_property
    def _client(self) -> Any:
        return s3_client(self._endpoint)

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        bucket, prefix = _parsed(uri)

        @cache
        def pinned(name: str) -> SourceFile:
            return _pinned(name, self._head(bucket, prefix + checked_name(name)))

        def read(name: str) -> bytes:
            return bytes(self._open(bucket, prefix, pinned(name))["Body"].read())

        with _s3_errors(uri):
            names, facts = describe_model(self._sizes(bucket, prefix), read)
            files = tuple(map(pinned, names))
        digest = content_digest(
            [
                f"s3 {bucket}/{prefix}",
                *(f"{file.path} {file.size} {file.digest} {file.version}" for file in files),
            ]
        )
        folder = f"s3://{bucket}/{prefix}".removesuffix("/")
        return ResolvedSource(uri=folder, digest=digest, files=files), facts

    def remote(self, resolved: ResolvedSource) -> Remote:
        bucket, prefix = _parsed(resolved.uri)

        def bring(file: SourceFile, path: Path, on_bytes: OnBytes) -> None:
            with _s3_errors(resolved.uri):
                self._download(bucket, prefix, file, path, on_bytes)

        def locate(file: SourceFile, *, again: bool) -> Location:
            with _s3_errors(resolved.uri):
                return self._locate(bucket, prefix, file, is_checked=again)

        def open_reader() -> RangeReader:
            return HttpRanges(locate, self._patience)

        return Remote(bring, open_reader, self._patience, came_from=lambda: "s3")

    def _locate(self, bucket: str, prefix: str, file: SourceFile, *, is_checked: bool) -> Location:
        """A signed URL of the pinned version.

        Checked, it is that of another ETag where the object was replaced by one of equal digest.
        """
        name = {"Bucket": bucket, "Key": prefix + checked_name(file.path), **_version(file)}
        etag = _etag(file)
        if is_checked:
            found = _pinned(file.path, self._head(**name))
            if not _is_same(found, file):
                raise SourceChanged(
                    f"s3://{bucket}/{name['Key']} has changed since the model was deployed",
                    hint="deploy the model again",
                    path=file.path,
                )
            etag = _etag(found)
        url = self._client.generate_presigned_url("get_object", name, ExpiresIn=URL_LIVES_S)
        return Location(url, etag=etag)

    def _head(self, Bucket: str, Key: str, **version: str) -> Json:  # noqa: N803 - as boto3 has it
        answer: Json = self._client.head_object(
            Bucket=Bucket, Key=Key, ChecksumMode="ENABLED", **version
        )
        return answer

    def _sizes(self, bucket: str, prefix: str) -> dict[str, int]:
        """Bytes of the objects directly under the prefix."""
        sizes: dict[str, int] = {}
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, Delimiter="/", PaginationConfig={"MaxItems": MAX_LISTED}
        )
        for page in pages:
            for found in page.get("Contents", ()):
                sizes[found["Key"].removeprefix(prefix)] = found["Size"]
        if not sizes:
            raise SourceInvalid(f"s3://{bucket}/{prefix} holds no objects")
        return sizes

    def _open(self, bucket: str, prefix: str, file: SourceFile) -> Json:
        """An answer with exactly the pinned content: the store refuses where the ETag differs."""
        key = prefix + checked_name(file.path)
        answer: Json = self._client.get_object(
            Bucket=bucket, Key=key, IfMatch=_etag(file), **_version(file)
        )
        return answer

    def _download(
        self, bucket: str, prefix: str, file: SourceFile, path: Path, on_bytes: OnBytes
    ) -> None:
        answer = self._open(bucket, prefix, file)
        with path.open("wb") as target:
            for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                target.write(chunk)
                on_bytes(len(chunk))


def _parsed(uri: str) -> tuple[str, str]:
    """Bucket, and prefix that is empty or ends with a slash."""
    match = URI.fullmatch(uri)
    if match is None:
        raise SourceInvalid(f"{uri[:200]} is not s3://bucket/prefix")
    prefix = (match["prefix"] or "").strip("/")
    return match["bucket"], f"{prefix}/" if prefix else ""


def _pinned(name: str, head: Json) -> SourceFile:
    version = head.get("VersionId")
    etag = head["ETag"].strip('"')
    return SourceFile(
        path=name,
        size=head["ContentLength"],
        digest=_digest(head, etag),
        etag=etag,
        version=None if version in {None, "null"} else version,
    )


def _digest(head: Json, etag: str) -> str:
    """The best that the store knows: SHA-256, MD5, or nothing that could be computed."""
    checksum = head.get("ChecksumSHA256")
    if checksum is not None and head.get("ChecksumType") != "COMPOSITE" and "-" not in checksum:
        return f"sha256:{base64.b64decode(checksum).hex()}"
    is_plain = PLAIN_MD5.fullmatch(etag) is not None and "SSECustomerAlgorithm" not in head
    if is_plain and head.get("ServerSideEncryption") in UNENCRYPTED:
        return f"md5:{etag}"
    return f"etag:{etag}"


def _etag(file: SourceFile) -> str:
    assert file.etag is not None, "S3 gives every object one"
    return file.etag


def _version(file: SourceFile) -> dict[str, str]:
    return {} if file.version is None else {"VersionId": file.version}


def _is_same(found: SourceFile, pinned: SourceFile) -> bool:
    """Whether the bytes are those that were pinned, whatever the store calls the version."""
    return (found.size, found.digest) == (pinned.size, pinned.digest)


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Turns what boto3 raises into ours."""
    try:
        import boto3  # noqa: F401 - the extra that brings it may be missing
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    except ImportError as error:
        raise DependencyMissing(
            "s3:// needs boto3", hint="pip install 'firstlight[aws]'"
        ) from error
    try:
        yield
    except ClientError as error:
        raise _from_client_error(uri, error) from error
    except (BotoCoreError, HTTPClientError) as error:
        raise SourceUnavailable(f"cannot read {uri}: {error}") from error


def _from_client_error(uri: str, error: Any) -> PlatformError:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = error.response.get("Error", {}).get("Code", "")
    match status:
        case 404:
            return SourceInvalid(f"{uri} does not exist ({code})")
        case 412:
            return SourceChanged(
                f"{uri} has changed since the model was deployed", hint="deploy the model again"
            )
        case 401 | 403:
            return SourceUnavailable(
                f"the store denies access to {uri} ({code})", hint="check the AWS credentials"
            )
        case _:
            return SourceUnavailable(f"the store answers HTTP {status} ({code}) for {uri}")
