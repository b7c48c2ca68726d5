"""What an image consists of, as its manifest and its configuration say it."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from infra.errors import ImageInvalid
from infra.registry.manifest import Descriptor
from infra.registry.reference import DIGEST

MOST_LAYERS: Final = 512
MOST_CONFIG_BYTES: Final = 4 << 20
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """A layer and its place in the image."""

    blob: Descriptor
    diff_id: str  # digest of its uncompressed tar
    chain_id: str  # names it together with all layers below it
    parent: str  # chain id of those, or ""


def this_architecture() -> str:
    """As images call it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def choose(manifests: Any, *, architecture: str) -> Descriptor:
    """The manifest for Linux on that architecture out of a list. Raises ImageInvalid."""
    for listed in manifests if isinstance(manifests, list) else []:
        wanted = listed.get("platform") if isinstance(listed, dict) else None
        if not isinstance(wanted, dict):
            continue
        if (wanted.get("os"), wanted.get("architecture")) == ("linux", architecture):
            return Descriptor.parse(listed)
    raise ImageInvalid(f"the image has nothing for linux/{architecture}")


def configuration_of(manifest: Mapping[str, Any]) -> Descriptor:
    """Of an image's manifest. Raises ImageInvalid."""
    return Descriptor.parse(manifest.get("config"))


def layers_of(
    manifest: Mapping[str, Any], configuration: Mapping[str, Any]
) -> tuple[ImageLayer, ...]:
    """From the lowest to the highest. Raises ImageInvalid."""
    listed = manifest.get("layers")
    rootfs = configuration.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(listed, list) or not isinstance(diff_ids, list):
        raise ImageInvalid("the image lists no layers")
    if len(listed) != len(diff_ids) or not 0 < len(listed) <= MOST_LAYERS:
        raise ImageInvalid(f"the image has {len(listed)} layers and {len(diff_ids)} of their tars")
    if not all(isinstance(it, str) and DIGEST.fullmatch(it) for it in diff_ids):
        raise ImageInvalid("the image has a layer whose tar has no digest")
    chain = ("", *chain_ids(diff_ids))
    return tuple(
        ImageLayer(Descriptor.parse(blob), diff_id, chain_id, parent)
        for blob, diff_id, chain_id, parent in zip(
            listed, diff_ids, chain[1:], chain[:-1], strict=True
        )
    )


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """Each layer's name together with those below it (OCI image specification, config.md)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        named = f"{chain[-1]} {diff_id}" if chain else diff_id
        digest = f"sha256:{sha256(named.encode()).hexdigest()}"
        chain.append(digest if chain else diff_id)
    return chain
