"""Pulls an image into containerd, without those layers that our snapshotter can mount."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import grpc

from infra.clock import Clock
from infra.containerd.client import CallFailed, Containerd
from infra.containerd.methods import Images, Leases
from infra.containerd.protos import images_pb2, leases_pb2, types_pb2
from infra.containerd.snapshot_names import snapshot_name
from infra.json_file import parse_json_object
from infra.registry.client import Registry
from infra.registry.manifest import LISTS, Descriptor, Manifest
from infra.registry.reference import Reference
from snapshotter.containerd.contents import Contents
from snapshotter.containerd.layer_puller import How, LayerPuller
from snapshotter.registry.image import (
    MOST_CONFIG_BYTES,
    ImageLayer,
    choose,
    configuration_of,
    layers_of,
)

_NUM_TOGETHER: Final = 3  # requests besides one, once the manifest is here: see `Lookups`
_LEASE_S: Final = 3600.0  # what a killed pull left is collected after that

OnLayer = Callable[[int, int, str], None]
OnImage = Callable[[Reference, str | None], None]


def ignore_image(image: Reference, index: str | None) -> None:
    """Nobody gets ready for it."""


@dataclass(frozen=True, slots=True)
class PulledLayer:
    """A layer, its size in the registry, and what came of it."""

    digest: str
    size_bytes: int
    how: How


@dataclass(frozen=True, slots=True)
class PulledImage:
    """An image that containers can be made of."""

    name: str
    digest: str
    layers: tuple[PulledLayer, ...]


class Puller:
    """One image at a time; raises PlatformError and CallFailed."""

    def __init__(
        self,
        containerd: Containerd,
        registry: Registry,
        *,
        snapshotter: str,
        architecture: str,
        clock: Clock,
        on_image: OnImage = ignore_image,
    ) -> None:
        """`on_image` hears which manifest an image has that is not here yet, and which index."""
        self._containerd = containerd
        self._registry = registry
        self._snapshotter = snapshotter
        self._architecture = architecture
        self._clock = clock
        self._on_image = on_image

    def pull(self, image: Reference, on_layer: OnLayer, *, index: str | None = None) -> PulledImage:
        """May be repeated: what is there is not fetched again.

        `index`: the digest of the only index by which layers may be mounted, which otherwise are
        unpacked; None: whichever lies beside the image.
        `on_layer` hears before each layer how many are done, of how many, and its digest.
        """
        if image.tag is None and image.digest is None:
            image = replace(image, tag="latest")
        self._registry.make_ready(image, _NUM_TOGETHER)
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(self._manifests, image)
            with self._lease() as lease:
                return self._pull(image, *found.result(), index, lease, on_layer)

    def _manifests(self, image: Reference) -> tuple[Manifest, Manifest]:
        """What the image's name stands for, and what this machine takes of it."""
        named = self._registry.manifest(image)
        if named.descriptor.media_type not in LISTS:
            return named, named
        chosen = choose(named.content.get("manifests"), architecture=self._architecture)
        return named, self._registry.manifest(image.at(chosen.digest))

    def _pull(
        self,
        image: Reference,
        named: Manifest,
        manifest: Manifest,
        index: str | None,
        lease: str,
        on_layer: OnLayer,
    ) -> PulledImage:
        contents = Contents(self._containerd, lease)
        if not contents.has(manifest.descriptor.digest):
            self._on_image(image.at(manifest.descriptor.digest), index)
        config = configuration_of(manifest.content)
        raw_config = self._registry.blob(image, config, most_bytes=MOST_CONFIG_BYTES)
        configuration = parse_json_object(raw_config, name=f"the configuration of {image}")
        layers = layers_of(manifest.content, configuration)

        origin = {f"containerd.io/distribution.source.{image.host}": image.repository}
        if manifest is not named:
            keeps = {"containerd.io/gc.ref.content.m.0": manifest.descriptor.digest}
            contents.write(named.descriptor, named.raw, origin | keeps)
        keeps = _keeps(config, layers)
        contents.write(manifest.descriptor, manifest.raw, origin | keeps)
        keeps = self._keeps_snapshot(layers[-1].chain_id, index)
        contents.write(config, raw_config, origin | keeps)
        puller = LayerPuller(
            self._containerd,
            self._registry,
            self._snapshotter,
            image,
            manifest.descriptor.digest,
            index,
            contents,
            lease,
        )
        pulled = []
        for number, layer in enumerate(layers):
            on_layer(number, len(layers), layer.blob.digest)
            how = puller.pull(layer)
            pulled.append(PulledLayer(layer.blob.digest, layer.blob.size, how))
        self._name(image, named.descriptor, lease)
        return PulledImage(str(image), named.descriptor.digest, tuple(pulled))

    def _keeps_snapshot(self, chain_id: str, index: str | None) -> dict[str, str]:
        """A label for each pin: what follows the slash, containerd does not look at."""
        label = f"containerd.io/gc.ref.snapshot.{self._snapshotter}"
        if index is not None:
            label = f"{label}/{index.rpartition(':')[2][:16]}"
        return {label: snapshot_name(chain_id, index)}

    def _name(self, image: Reference, target: Descriptor, lease: str) -> None:
        """The image's name stands for what was pulled, whatever it stood for."""
        named = images_pb2.Image(
            name=str(image),
            target=types_pb2.Descriptor(
                media_type=target.media_type, digest=target.digest, size=target.size
            ),
        )
        try:
            create = images_pb2.CreateImageRequest(image=named)
            self._containerd.call(Images.CREATE, create, lease=lease)
        except CallFailed as failed:
            if failed.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            update = images_pb2.UpdateImageRequest(image=named)
            update.update_mask.paths.append("target")
            self._containerd.call(Images.UPDATE, update, lease=lease)

    @contextmanager
    def _lease(self) -> Iterator[str]:
        name = f"firstlight-{secrets.token_hex(8)}"
        expires = datetime.fromtimestamp(self._clock.now() + _LEASE_S, UTC)
        labels = {"containerd.io/gc.expire": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._containerd.call(Leases.CREATE, leases_pb2.CreateRequest(id=name, labels=labels))
        try:
            yield name
        except BaseException:  # what was made for nothing is gone when the caller hears of it
            self._end(name, sync=True)
            raise
        self._end(name, sync=False)

    def _end(self, lease: str, *, sync: bool) -> None:
        self._containerd.call(Leases.DELETE, leases_pb2.DeleteRequest(id=lease, sync=sync))


def _keeps(config: Descriptor, layers: Sequence[ImageLayer]) -> dict[str, str]:
    """Labels by which the manifest keeps what it refers to from being collected."""
    keeps = {"containerd.io/gc.ref.content.config": config.digest}
    for number, layer in enumerate(layers):
        keeps[f"containerd.io/gc.ref.content.l.{number}"] = layer.blob.digest
    return keeps
