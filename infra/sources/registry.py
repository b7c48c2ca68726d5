"""Models in a registry of OCI artifacts: `oci://host/repository:tag`, pinned to a manifest."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from infra.contracts.revision import ModelFacts, ResolvedSource, SourceFile
from infra.errors import (
    Forbidden,
    ImageInvalid,
    Invalid,
    NotFound,
    SourceInvalid,
    SourceUnavailable,
    Unauthorized,
)
from infra.registry.authorization import Authorization, docker_logins
from infra.registry.client import Registry
from infra.registry.connections import AddressForbidden, Connections, MayReach
from infra.registry.manifest import LISTS, Descriptor
from infra.registry.reach import ANYWHERE, REACH_HINT, Reach
from infra.registry.reference import Reference, is_this_machine
from infra.sources.digests import content_digest
from infra.sources.http_ranges import HttpRanges, Location
from infra.sources.model_files import MAX_LISTED, MAX_READ_BYTES, checked_name, describe_model
from infra.sources.patience import PATIENT, Patience
from infra.sources.port import OnBytes, RangeReader, Remote

SCHEME: Final = "oci://"
DOCKER_CONFIG: Final = Path("~/.docker/config.json")
# Where a layer says which file it is: ModelPack and Docker's models; ORAS and whoever follows it.
NAMES: Final = ("org.cncf.model.filepath", "org.opencontainers.image.title")
_PACKED: Final = re.compile(r"[.+](tar|gzip|zstd)\b")  # in a media type: no file as it is
_ORAS_FILE: Final = "application/vnd.oci.image.layer.v1.tar"  # which `oras push` calls every file
_ORAS_FOLDER: Final = "io.deis.oras.content.unpack"
_MOST_SMALL_BYTES: Final = max(MAX_READ_BYTES.values())


class RegistrySource:
    """Layers that are files as they are, each with its SHA-256.

    Logins are those of `docker login`. Registries on this machine are spoken to without TLS, and
    those of `plain_http`. What `reach` keeps from being read is Forbidden.
    """

    def __init__(
        self,
        docker_config: Path = DOCKER_CONFIG,
        *,
        plain_http: frozenset[str] = frozenset(),
        reach: Reach = ANYWHERE,
        patience: Patience = PATIENT,
    ) -> None:
        self._docker_config = docker_config
        self._plain_http = plain_http
        self._reach = reach
        self._patience = patience
        self._registry = cache(self._open)  # one for each reach: its connections serve no other

    def _open(self, may_reach: MayReach) -> Registry:
        connections = Connections(is_plain=self._is_plain, may_reach=may_reach)
        logins = docker_logins(self._docker_config.expanduser())
        return Registry(connections, Authorization(connections, logins))

    def _is_plain(self, host: str) -> bool:
        return host in self._plain_http or is_this_machine(host)

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        asked = _parsed(uri)
        with self._asking(asked) as registry:
            manifest = registry.manifest(asked)
            if manifest.descriptor.media_type in LISTS:
                raise SourceInvalid(f"{uri} is a list of manifests and not a model")
            layers, packed = _files(manifest.content)
            model = asked.at(manifest.descriptor.digest)
            try:
                names, facts = describe_model(
                    {name: layer.size for name, layer in layers.items()},
                    lambda name: _read(registry, model, layers[name]),
                )
            except SourceInvalid as error:
                raise _of_archives(error, packed) from error
        files = tuple(
            SourceFile(path=name, size=layers[name].size, digest=layers[name].digest)
            for name in names
        )
        digest = content_digest(
            [
                f"oci {model.host}/{model.repository}",
                *(f"{file.path} {file.size} {file.digest}" for file in files),
            ]
        )
        return ResolvedSource(uri=f"{SCHEME}{model}", digest=digest, files=files), facts

    def remote(self, resolved: ResolvedSource) -> Remote:
        model = _parsed(resolved.uri)

        def bring(file: SourceFile, path: Path, on_bytes: OnBytes) -> None:
            with self._asking(model) as registry:
                path.write_bytes(_read(registry, model, _layer(file)))
            on_bytes(file.size)

        def locate(file: SourceFile, *, again: bool) -> Location:
            with self._asking(model) as registry:
                place = registry.blob_place(model, _digest(file), is_checked=again)
            return Location(place.url, place.headers)

        def open_reader() -> RangeReader:
            return HttpRanges(locate, self._patience)

        return Remote(bring, open_reader, self._patience, came_from=lambda: "registry")

    @contextmanager
    def _asking(self, model: Reference) -> Iterator[Registry]:
        """What the client raises becomes what sources raise; no connection stays open."""
        uri, registry = f"{SCHEME}{model}", self._registry(self._reach.of(model))
        try:
            yield registry
        except NotFound as error:
            raise SourceInvalid(f"{uri} does not exist", hint="check repository and tag") from error
        except AddressForbidden as error:
            raise Forbidden(
                f"models may not have weights of {model.host}: {error.detail}",
                hint=REACH_HINT,
            ) from error
        except (Unauthorized, Forbidden) as error:
            raise SourceUnavailable(error.detail, hint=error.hint) from error
        except SourceInvalid:
            raise
        except Invalid as error:
            raise SourceInvalid(f"{uri}: {error.detail}", hint=error.hint) from error
        finally:
            registry.close()


def _parsed(uri: str) -> Reference:
    try:
        return Reference.parse(uri.removeprefix(SCHEME))
    except ImageInvalid as error:
        raise SourceInvalid(
            f"{uri[:200]} is not oci://host/repository:tag", hint=error.hint
        ) from error


def _files(manifest: Mapping[str, Any]) -> tuple[dict[str, Descriptor], list[Descriptor]]:
    """The layers that are files of the model's top folder, by name, and those that are archives.

    Raises SourceInvalid.
    """
    listed = manifest.get("layers")
    if not isinstance(listed, list) or len(listed) > MAX_LISTED:
        raise SourceInvalid("the manifest lists no layers")
    layers = [Descriptor.parse(each) for each in listed]
    named: dict[str, Descriptor] = {}
    for layer in layers:
        name = next((layer.annotations[key] for key in NAMES if key in layer.annotations), None)
        if name is None or "/" in name or _is_packed(layer):
            continue
        if name in named:
            raise SourceInvalid(f"the manifest has two layers that are {name[:100]!a}")
        named[name] = layer
    return named, [layer for layer in layers if _is_packed(layer)]


def _of_archives(error: SourceInvalid, packed: Sequence[Descriptor]) -> SourceInvalid:
    """What is missing may be in an archive: those are not unpacked, since parts of what is in them
    can neither be read nor proven.
    """
    if not packed:
        return error
    return SourceInvalid(
        f"{error.detail}, and layers that are archives of files are not read: {len(packed)} "
        f"({packed[0].media_type[:100]})",
        hint="unpack them (`kit unpack`) and push each file as a layer of its own (`oras push`)",
    )


def _is_packed(layer: Descriptor) -> bool:
    if layer.annotations.get(_ORAS_FOLDER) == "true":
        return True
    return layer.media_type != _ORAS_FILE and _PACKED.search(layer.media_type) is not None


def _read(registry: Registry, model: Reference, layer: Descriptor) -> bytes:
    return registry.blob(model, layer, most_bytes=_MOST_SMALL_BYTES)


def _layer(file: SourceFile) -> Descriptor:
    return Descriptor("application/octet-stream", _digest(file), file.size, {})


def _digest(file: SourceFile) -> str:
    checked_name(file.path)
    if file.digest is None:
        raise SourceInvalid(f"{file.path} has no digest", path=file.path)
    return file.digest
