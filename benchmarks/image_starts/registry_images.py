"""The image of the benchmark in a registry: as every builder makes it, and in both lazy forms."""

import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.torch_image import torch_layers
from infra.registry.authorization import Authorization, no_login
from infra.registry.client import Registry
from infra.registry.connections import Connections
from infra.registry.reference import Reference
from snapshotter.index.publish import Publisher
from snapshotter.registry.image import this_architecture
from tests.support.oci import Layer, push_image

REPOSITORY = "bench/torch"


@dataclass(frozen=True, slots=True)
class Image:
    """One form of the image; `made_s`: what its index, or its conversion, took."""

    tag: str
    digest: str
    size_bytes: int
    made_s: float


def push_images(address: str, folder: Path) -> tuple[Image, Image]:
    """As gzip with an index, and as zstd. The layers are made in `folder`, or are there."""
    tars = torch_layers(folder)
    with ThreadPoolExecutor(2) as pool:
        blobs = list(pool.map(_gzipped, tars))
    layers = [
        Layer(blob.read_bytes(), tar.read_bytes()) for blob, tar in zip(blobs, tars, strict=True)
    ]
    push_image(address, REPOSITORY, layers, tag="gzip")
    with closing(_registry()) as registry:
        publisher = Publisher(registry, architecture=this_architecture())
        gzip = Reference(address, REPOSITORY, "gzip")
        zstd = Reference(address, REPOSITORY, "zstd")
        began = time.monotonic()
        publisher.index(gzip)
        indexed_s = time.monotonic() - began
        began = time.monotonic()
        publisher.convert(gzip, zstd)
        converted_s = time.monotonic() - began
        return (
            _described(registry, gzip, indexed_s),
            _described(registry, zstd, converted_s),
        )


def _described(registry: Registry, image: Reference, made_s: float) -> Image:
    manifest = registry.manifest(image)
    size_bytes = sum(layer["size"] for layer in manifest.content["layers"])
    return Image(str(image.tag), manifest.descriptor.digest, size_bytes, made_s)


def _registry() -> Registry:
    connections = Connections(is_plain=lambda host: True)
    return Registry(connections, Authorization(connections, no_login))


def _gzipped(tar: Path) -> Path:
    """As `docker build` compresses it."""
    blob = tar.with_suffix(".tar.gz")
    if not blob.exists():
        deflater = zlib.compressobj(6, zlib.DEFLATED, 31)
        partial = blob.with_suffix(".partial")
        with tar.open("rb") as source, partial.open("wb") as target:
            while part := source.read(1 << 20):
                target.write(deflater.compress(part))
            target.write(deflater.flush())
        partial.rename(blob)
    return blob
