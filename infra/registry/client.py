"""What we say to a registry (OCI distribution specification 1.1): manifests, blobs, ranges."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlencode, urljoin

from infra.backoff import Backoff
from infra.errors import (
    Forbidden,
    ImageInvalid,
    NotFound,
    PlatformError,
    SourceUnavailable,
    Unauthorized,
)
from infra.json_file import parse_json_object
from infra.registry.authorization import Authorization
from infra.registry.connections import Answer, Body, Connections, Opened, Sink
from infra.registry.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    Descriptor,
    Manifest,
)
from infra.registry.reference import Reference

_ACCEPT: Final = ", ".join((MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST))
MOST_MANIFEST_BYTES: Final = 4 << 20
_TRIES: Final = 4
_BACKOFF: Final = Backoff(first_s=0.1, most_s=2.0)
_MOST_RETRY_AFTER_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a blob can be read by whoever sends these headers."""

    url: str
    headers: Mapping[str, str]


class Registry:
    """Any number of registries and repositories; any thread may use it.

    What fails in transit or with a status like 429 or 5xx is tried four times in all. Raises
    NotFound, Unauthorized, Forbidden and ImageInvalid when trying again is useless,
    SourceUnavailable otherwise.
    """

    def __init__(
        self,
        connections: Connections,
        authorization: Authorization,
        *,
        pause: Callable[[float], None] = time.sleep,  # noqa: TID251 - blocking is the way here
    ) -> None:
        self._connections = connections
        self._authorization = authorization
        self._pause = pause

    def close(self) -> None:
        """Closes what is idle."""
        self._connections.close()

    def make_ready(self, image: Reference, count: int) -> None:
        """So many requests will leave together in a moment: connections cost round trips."""
        self._connections.make_ready(image.endpoint, count)

    def manifest(self, image: Reference) -> Manifest:
        """The manifest or list of manifests; its digest was compared with what was asked for."""
        path = f"/v2/{image.repository}/manifests/{image.wanted}"
        error = SourceUnavailable(f"{image.host} does not answer")
        for _ in range(2):
            answer = self._ask(
                "GET", image, path, headers={"Accept": _ACCEPT}, most_bytes=MOST_MANIFEST_BYTES
            )
            digest = _digest_of(answer.body)
            if image.digest in {None, digest}:
                content = parse_json_object(answer.body, name=f"the manifest of {image}")
                media_type = answer.headers.get("content-type", MANIFEST).partition(";")[0]
                descriptor = Descriptor(media_type, digest, len(answer.body), {})
                return Manifest(descriptor, answer.body, content)
            error = SourceUnavailable(f"{image.host} gives a manifest with another digest")
        raise error

    def blob(self, image: Reference, blob: Descriptor, *, most_bytes: int) -> bytes:
        """A small blob, verified."""
        if blob.size > most_bytes:
            raise ImageInvalid(f"{blob.digest} has {blob.size} bytes", limit=most_bytes)
        for _ in range(2):
            answer = self._ask("GET", image, _blob_path(image, blob), most_bytes=blob.size)
            if _digest_of(answer.body) == blob.digest:
                return answer.body
        raise SourceUnavailable(f"{image.host} gives wrong bytes for {blob.digest}")

    def download(self, image: Reference, blob: Descriptor, path: Path) -> None:
        """A large blob into a file, verified; what is at `path` afterwards is right or nothing."""
        for attempt in range(1, _TRIES + 1):
            hashed = sha256()
            try:
                with path.open("wb") as file:

                    def consume(part: bytes, file: IO[bytes] = file, hashed: Any = hashed) -> None:
                        file.write(part)
                        hashed.update(part)

                    url = _blob_path(image, blob)
                    self._ask_once("GET", image, url, most_bytes=blob.size, sink=consume)
                if f"sha256:{hashed.hexdigest()}" == blob.digest:
                    return
                raise SourceUnavailable(f"{image.host} gives wrong bytes for {blob.digest}")
            except SourceUnavailable:
                path.unlink(missing_ok=True)
                if attempt == _TRIES:
                    raise
                self._pause(_BACKOFF.delay_s(attempt))

    def blob_parts(
        self, image: Reference, digest: str, offset: int, length: int
    ) -> Iterator[bytes]:
        """Exactly those bytes of a blob, as they come and unverified."""
        num_bytes = 0
        for attempt in range(1, _TRIES + 1):
            try:
                for part in self._range(image, digest, offset + num_bytes, length - num_bytes):
                    num_bytes += len(part)
                    yield part
                return
            except SourceUnavailable as error:
                if attempt == _TRIES:
                    raise
                asked_s = error.facts.get("retry_after_s", 0.0)
            self._pause(max(_BACKOFF.delay_s(attempt), asked_s))

    def _range(self, image: Reference, digest: str, offset: int, length: int) -> Iterator[bytes]:
        last = offset + length - 1
        path = f"/v2/{image.repository}/blobs/{digest}"
        with self._opened(
            "GET", image, path, headers={"Range": f"bytes={offset}-{last}"}
        ) as opened:
            said = opened.headers.get("content-range", "")
            if opened.status != 206 or not said.startswith(f"bytes {offset}-{last}/"):
                raise ImageInvalid(f"{image.host} answers another range than was asked for")
            num_bytes = 0
            for part in opened.parts(length):
                num_bytes += len(part)
                yield part
        if num_bytes != length:
            raise SourceUnavailable(f"{image.host} answers {num_bytes} bytes of {length}")

    def blob_place(self, image: Reference, digest: str, *, is_checked: bool) -> Place:
        """For readers of ranges that bring their own connections.

        Checked, the registry has been asked for the blob now, and has let us in.
        """
        path = f"/v2/{image.repository}/blobs/{digest}"
        if is_checked:
            self._ask("HEAD", image, path, most_bytes=0)
        header = self._authorization.header(image.host, _scope(image, "pull"))
        headers = {} if header is None else {"Authorization": header}
        return Place(f"{self._connections.origin(image.endpoint)}{path}", headers)

    def has_blob(self, image: Reference, digest: str) -> bool:
        """Whether the repository has it already."""
        try:
            path = f"/v2/{image.repository}/blobs/{digest}"
            self._ask("HEAD", image, path, most_bytes=0, scope="pull,push")
        except NotFound:
            return False
        return True

    def push_blob(self, image: Reference, content: bytes | Path, media_type: str) -> Descriptor:
        """Uploads it unless it is there; may be repeated."""
        if isinstance(content, bytes):
            digest, size = _digest_of(content), len(content)
        else:
            digest, size = digest_of_file(content), content.stat().st_size
        descriptor = Descriptor(media_type, digest, size, {})
        if self.has_blob(image, digest):
            return descriptor
        for attempt in range(1, _TRIES + 1):
            try:
                self._upload(image, content, descriptor)
                break
            except SourceUnavailable:
                if attempt == _TRIES:
                    raise
                self._pause(_BACKOFF.delay_s(attempt))
        return descriptor

    def _upload(self, image: Reference, content: bytes | Path, blob: Descriptor) -> None:
        path = f"/v2/{image.repository}/blobs/uploads/"
        begun = self._ask_once("POST", image, path, body=b"", scope="pull,push")
        origin = self._connections.origin(image.endpoint)
        url = urljoin(f"{origin}{path}", begun.headers.get("location", ""))
        if origin.startswith("https:") and not url.startswith("https:"):
            raise SourceUnavailable(f"{image.host} takes uploads without TLS only")
        joint = "&" if "?" in url else "?"
        url += f"{joint}{urlencode({'digest': blob.digest})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        if isinstance(content, bytes):
            self._ask_once("PUT", image, url, headers=headers, body=content, scope="pull,push")
            return
        with content.open("rb") as file:
            self._ask_once("PUT", image, url, headers=headers, body=file, scope="pull,push")

    def check_push(self, image: Reference) -> None:
        """Raises Unauthorized or Forbidden where nothing may be pushed to the repository."""
        path = f"/v2/{image.repository}/blobs/uploads/"
        begun = self._ask("POST", image, path, body=b"", scope="pull,push")
        origin = self._connections.origin(image.endpoint)
        url = urljoin(f"{origin}{path}", begun.headers.get("location", ""))
        if url.startswith(f"{origin}/"):
            with suppress(PlatformError):  # a registry that cannot forget it lets it expire
                self._ask_once("DELETE", image, url, scope="pull,push")

    def push_manifest(
        self, image: Reference, manifest: Mapping[str, Any], *, name: str | None = None
    ) -> tuple[Descriptor, bool]:
        """Puts it under `name` or its digest; also says whether the registry lists referrers."""
        raw = json.dumps(manifest, sort_keys=True).encode()
        media_type = manifest["mediaType"]
        descriptor = Descriptor(media_type, _digest_of(raw), len(raw), {})
        answer = self._ask(
            "PUT",
            image,
            f"/v2/{image.repository}/manifests/{name or descriptor.digest}",
            headers={"Content-Type": media_type},
            body=raw,
            scope="pull,push",
        )
        return descriptor, "oci-subject" in answer.headers

    def referrers(self, image: Reference, digest: str) -> list[Descriptor] | None:
        """Manifests that name `digest` as their subject; None: the registry keeps no such list."""
        path = f"/v2/{image.repository}/referrers/{digest}"
        try:
            answer = self._ask("GET", image, path, most_bytes=MOST_MANIFEST_BYTES)
        except NotFound:
            return None
        listed = parse_json_object(answer.body, name="the list of referrers").get("manifests")
        return [Descriptor.parse(each) for each in listed or []]

    def _ask(self, method: str, image: Reference, path: str, **options: Any) -> Answer:
        attempt = 1
        while True:
            try:
                return self._ask_once(method, image, path, **options)
            except SourceUnavailable as error:
                if attempt == _TRIES:
                    raise
                asked_s = error.facts.get("retry_after_s", 0.0)
                self._pause(max(_BACKOFF.delay_s(attempt), asked_s))
                attempt += 1

    def _ask_once(
        self,
        method: str,
        image: Reference,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        most_bytes: int = MOST_MANIFEST_BYTES,
        scope: str = "pull",
        sink: Sink | None = None,
    ) -> Answer:
        with self._opened(method, image, path, headers=headers, body=body, scope=scope) as opened:
            return opened.whole(most_bytes, sink)

    @contextmanager
    def _opened(
        self,
        method: str,
        image: Reference,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        scope: str = "pull",
    ) -> Iterator[Opened]:
        """A success whose body is still to be read."""
        origin = self._connections.origin(image.endpoint)
        url = path if path.startswith("http") else f"{origin}{path}"
        is_ours = url.startswith(f"{origin}/")  # uploads may go elsewhere, our token may not
        scope = _scope(image, scope)
        token = self._authorization.header(image.host, scope) if is_ours else None

        def exchange(token: str | None) -> AbstractContextManager[Opened]:
            sent = dict(headers or {}) | ({"Authorization": token} if token else {})
            return self._connections.opened(method, url, headers=sent, body=body)

        with exchange(token) as opened:
            if opened.status != 401 or not is_ours:
                yield _success(opened, image, method)
                return
            challenge = opened.headers.get("www-authenticate", "")
            opened.whole()
        token = self._authorization.answer(image.host, scope, challenge, sent=token)
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        with exchange(token) as opened:
            yield _success(opened, image, method)


def _success(opened: Opened, image: Reference, method: str) -> Opened:
    """The response itself, unless it is a refusal: then raises what that says."""
    if 200 <= opened.status < 300:
        return opened
    raise _refusal(opened.whole(), image, method)


def _scope(image: Reference, actions: str) -> str:
    return f"repository:{image.repository}:{actions}"


def _refusal(answer: Answer, image: Reference, method: str) -> PlatformError:
    status = answer.status
    where = f"{image.host}/{image.repository}"
    match status:
        case 401:
            return Unauthorized(f"{where} refuses us", hint=f"log in: docker login {image.host}")
        case 403:
            return Forbidden(f"{where} does not allow us to {method}")
        case 404:
            return NotFound(f"{image} is not in the registry")
        case _:
            said = answer.headers.get("retry-after", "")
            retry_after_s = min(float(said), _MOST_RETRY_AFTER_S) if said.isdecimal() else 0.0
            return SourceUnavailable(f"{where} answers {status}", retry_after_s=retry_after_s)


def _blob_path(image: Reference, blob: Descriptor) -> str:
    return f"/v2/{image.repository}/blobs/{blob.digest}"


def _digest_of(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


def digest_of_file(path: Path) -> str:
    """`sha256:…` of a file's bytes."""
    hashed = sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            hashed.update(part)
    return f"sha256:{hashed.hexdigest()}"
