"""Pins images by asking their registries: what a tag means now, and whether it could be run."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from infra.contracts.image import ResolvedImage
from infra.errors import (
    Forbidden,
    ImageInvalid,
    ImageUnavailable,
    Invalid,
    NotFound,
    SourceUnavailable,
    Unauthorized,
)
from infra.json_file import parse_json_object
from infra.registry.authorization import Authorization, docker_logins
from infra.registry.client import Registry
from infra.registry.connections import AddressForbidden, Connections, MayReach, anywhere
from infra.registry.manifest import LISTS, Descriptor, Manifest
from infra.registry.reach import REACH_HINT, Reach, lies_in
from infra.registry.reference import Reference, is_this_machine

DOCKER_CONFIG: Final = Path("~/.docker/config.json")
SETTING: Final = "PLATFORM_IMAGE"
_MOST_CONFIG_BYTES: Final = 4 << 20


class RegistryImages:
    """See ImageResolver. `default` is the platform's own image, if it has one; `allowed` are the
    registries and repositories of which models may name images. None: all that `reach` lets us
    read.

    Logins are those of `docker login`. Registries on this machine are spoken to without TLS, and
    those of `plain_http`.
    """

    def __init__(
        self,
        default: str | None,
        *,
        allowed: frozenset[str] | None = None,
        reach: Reach,
        plain_http: frozenset[str] = frozenset(),
        docker_config: Path = DOCKER_CONFIG,
    ) -> None:
        self._default = default
        self._allowed = allowed
        self._reach = reach
        self._plain_http = plain_http
        self._docker_config = docker_config

    async def resolve(self, image: str | None) -> ResolvedImage | None:
        if image is not None:
            return await asyncio.to_thread(self._resolve, image, is_asked_for=True)
        if self._default is None:
            return None
        try:
            return await asyncio.to_thread(self._resolve, self._default, is_asked_for=False)
        except (ImageInvalid, ImageUnavailable) as error:  # whoever deploys did not write it
            raise ImageUnavailable(f"{SETTING}: {error.detail}", hint=error.hint) from error

    def _resolve(self, image: str, *, is_asked_for: bool) -> ResolvedImage:
        """The platform's own image needs no registry where it is pinned already."""
        reference = Reference.parse(image)
        if is_asked_for:
            self._check_allowed(reference)
        digest = reference.digest
        if digest is None or is_asked_for:
            may_reach = self._reach.of(reference) if is_asked_for else anywhere
            with self._asking(reference, may_reach) as registry:
                manifest = registry.manifest(reference)
                _check_runs(registry, reference, manifest)
                digest = manifest.descriptor.digest
        return ResolvedImage(reference=str(reference.at(digest)), is_asked_for=is_asked_for)

    def _check_allowed(self, image: Reference) -> None:
        if self._allowed is None or lies_in(image, self._allowed):
            return
        raise Forbidden(
            f"models may not name images of {image.host}/{image.repository}",
            hint=f"those of {', '.join(sorted(self._allowed))} may be named"
            if self._allowed
            else "leave out `image`",
            param="image",
        )

    @contextmanager
    def _asking(self, image: Reference, may_reach: MayReach) -> Iterator[Registry]:
        """What the client raises becomes what deploying raises; no connection stays open."""
        connections = Connections(is_plain=self._is_plain, may_reach=may_reach)
        logins = docker_logins(self._docker_config.expanduser())
        try:
            yield Registry(connections, Authorization(connections, logins))
        except NotFound as error:
            raise ImageInvalid(
                f"{image} is not in its registry", hint="check repository and tag", param="image"
            ) from error
        except AddressForbidden as error:
            raise Forbidden(
                f"models may not name images of {image.host}: {error.detail}",
                hint=REACH_HINT,
                param="image",
            ) from error
        except (Unauthorized, Forbidden) as error:
            raise ImageUnavailable(
                f"{image}: {error.detail}",
                hint=f"docker login {image.host}, as the user that the control plane runs as",
                param="image",
            ) from error
        except SourceUnavailable as error:
            raise ImageUnavailable(
                f"{image}: {error.detail}", hint="try again", param="image"
            ) from error
        except Invalid as error:
            raise ImageInvalid(
                f"{image}: {error.detail}", hint=error.hint, param="image"
            ) from error
        finally:
            connections.close()

    def _is_plain(self, host: str) -> bool:
        return host in self._plain_http or is_this_machine(host)


def _check_runs(registry: Registry, image: Reference, manifest: Manifest) -> None:
    """Raises ImageInvalid for what no node could start. Of a list, the first for Linux is read."""
    if manifest.descriptor.media_type in LISTS:
        manifest = registry.manifest(image.at(_for_linux(manifest.content.get("manifests"))))
    described = Descriptor.parse(manifest.content.get("config"))
    content = registry.blob(image, described, most_bytes=_MOST_CONFIG_BYTES)
    config = parse_json_object(content, name="its configuration")
    if config.get("os") != "linux":
        raise ImageInvalid("it is not an image for Linux")
    runs = config.get("config")
    if not (isinstance(runs, dict) and runs.get("Entrypoint")):
        raise ImageInvalid(
            "it has no entrypoint", hint="build it from the worker's image, and keep its ENTRYPOINT"
        )


def _for_linux(manifests: Any) -> str:
    for listed in manifests if isinstance(manifests, list) else []:
        platform = listed.get("platform") if isinstance(listed, dict) else None
        if isinstance(platform, dict) and platform.get("os") == "linux":
            return Descriptor.parse(listed).digest
    raise ImageInvalid("it has nothing for Linux")
