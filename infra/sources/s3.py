"""Models in S3 or a store that speaks its protocol: `s3://bucket/prefix`, pinned by ETag."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

from infra.contracts.revision import ModelFacts, ResolvedSource, SourceFile
from infra.errors import DependencyMissing, PlatformError, SourceInvalid, SourceUnavailable
from infra.s3_client import s3_client
from infra.sources.digests import content_digest, md5
from infra.sources.model_files import MAX_LISTED, checked_name, describe_model
from infra.sources.port import OnProgress
from infra.sources.staging import OnBytes, stage

URI: Final = re.compile(r"s3://(?P<bucket>[^/]+)(?:/(?P<prefix>.*))?")
PLAIN_MD5: Final = re.compile(r"[0-9a-f]{32}")
CHUNK_BYTES: Final = 4 << 20
Json = dict[str, Any]
UNENCRYPTED: Final = {None, "AES256"}  # where an ETag is the content's MD5


class S3Source:
    """Credentials and region come from where boto3 finds them; `endpoint` is for other stores."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    @cached_property
    def _client(self) -> Any:
        return s3_client(self._endpoint)

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        bucket, prefix = _parsed(uri)

        @cache
        def pinned(name: str) -> SourceFile:
            head = self._client.head_object(Bucket=bucket, Key=prefix + checked_name(name))
            return _pinned(name, head)

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

    def fetch(self, resolved: ResolvedSource, cache_dir: Path, on_progress: OnProgress) -> Path:
        bucket, prefix = _parsed(resolved.uri)

        def download(file: SourceFile, path: Path, on_bytes: OnBytes) -> None:
            with _s3_errors(resolved.uri):
                self._download(bucket, prefix, file, path, on_bytes)

        return stage(resolved, cache_dir, download, on_progress)

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
        version = {} if file.version is None else {"VersionId": file.version}
        key = prefix + checked_name(file.path)
        answer: Json = self._client.get_object(
            Bucket=bucket, Key=key, IfMatch=_etag(file), **version
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
        if _has_md5_etag(answer) and md5(path) != _etag(file):
            path.unlink()
            raise SourceUnavailable(f"{file.path} arrived damaged", path=file.path)


def _parsed(uri: str) -> tuple[str, str]:
    """Bucket, and prefix that is empty or ends with a slash."""
    match = URI.fullmatch(uri)
    if match is None:
        raise SourceInvalid(f"{uri[:200]} is not s3://bucket/prefix")
    prefix = (match["prefix"] or "").strip("/")
    return match["bucket"], f"{prefix}/" if prefix else ""


def _pinned(name: str, head: Json) -> SourceFile:
    version = head.get("VersionId")
    return SourceFile(
        path=name,
        size=head["ContentLength"],
        digest=f"etag:{head['ETag'].strip(chr(34))}",
        version=None if version in {None, "null"} else version,
    )


def _etag(file: SourceFile) -> str:
    return (file.digest or "").removeprefix("etag:")


def _has_md5_etag(answer: Json) -> bool:
    etag = answer["ETag"].strip('"')
    is_plain = PLAIN_MD5.fullmatch(etag) is not None and "SSECustomerAlgorithm" not in answer
    return is_plain and answer.get("ServerSideEncryption") in UNENCRYPTED


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
            return SourceInvalid(
                f"{uri} has changed since the model was deployed", hint="deploy the model again"
            )
        case 401 | 403:
            return SourceUnavailable(
                f"the store denies access to {uri} ({code})", hint="check the AWS credentials"
            )
        case _:
            return SourceUnavailable(f"the store answers HTTP {status} ({code}) for {uri}")
