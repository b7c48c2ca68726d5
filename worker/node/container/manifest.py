"""What manifests and configs of images say, as far as running one needs it."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from worker.node.container.spec import Program

INDEXES: Final = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
CONFIGS: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
LARGEST_DOCUMENT: Final = 4 << 20  # bytes
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def choose_platform(index: dict[str, Any], *, machine: str) -> str:
    """The digest of the manifest for a machine, as uname(2) calls it. Raises ValueError."""
    architecture = _ARCHITECTURES.get(machine, machine)
    for manifest in index["manifests"]:
        platform = manifest.get("platform", {})
        if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
            return str(manifest["digest"])
    raise ValueError(f"it has no manifest for linux/{architecture}")


def chain_id(diff_ids: Sequence[str]) -> str:
    """The name of all layers together, as the image specification computes it."""
    if not diff_ids:
        raise ValueError("it has no layer")
    chain = str(diff_ids[0])
    for diff_id in diff_ids[1:]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
    return chain


def program_of(config: dict[str, Any]) -> Program:
    """What the image runs. Raises ValueError unless it has an entrypoint."""
    told = config.get("config") or {}
    entrypoint = tuple(map(str, told.get("Entrypoint") or ()))
    if not entrypoint:
        raise ValueError("it has no entrypoint: a worker's image runs `python -m worker.main`")
    pairs = (str(line).partition("=") for line in told.get("Env") or ())
    return Program(
        entrypoint,
        {name: value for name, _, value in pairs},
        str(told.get("WorkingDir") or "/"),
    )
