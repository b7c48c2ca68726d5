"""Builds an image of ours from what is installed here and pushes it: see scripts/images."""

import argparse
import sys
import time

from benchmarks.image_build.image import CONTROL_PLANE, WORKER, build_and_push
from infra.errors import PlatformError
from infra.registry.authorization import Authorization, docker_logins
from infra.registry.client import Registry
from infra.registry.connections import Connections
from infra.registry.reference import Reference
from snapshotter.settings import SnapshotterSettings

RECIPES = {"worker": WORKER, "control-plane": CONTROL_PLANE}


def main() -> None:
    """Its reference with the digest goes to standard output."""
    parser = argparse.ArgumentParser(prog="scripts/images", description=__doc__)
    parser.add_argument("image", choices=RECIPES)
    parser.add_argument("reference", help="registry/name:tag to push it as")
    arguments = parser.parse_args()
    settings = SnapshotterSettings()
    connections = Connections(is_plain=settings.is_plain)
    logins = docker_logins(settings.docker_config)
    began = time.monotonic()
    try:
        reference = Reference.parse(arguments.reference)
        registry = Registry(connections, Authorization(connections, logins))
        digest = build_and_push(RECIPES[arguments.image], reference, registry)
    except PlatformError as error:
        sys.exit(f"error: {error.detail}" + (f"\nhint: {error.hint}" if error.hint else ""))
    print(f"{reference}@{digest}")  # noqa: T201
    print(f"built and pushed in {time.monotonic() - began:.1f} s", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
