"""An image with the scripted worker in it, built from what is installed here, in a registry."""

from benchmarks.image_build.image import Recipe, build_and_push
from infra.registry.authorization import Authorization, no_login
from infra.registry.client import Registry
from infra.registry.connections import Connections
from infra.registry.reference import Reference

SCRIPTED = Recipe(
    ("pydantic", "pydantic-settings", "structlog", "uvloop", "llguidance", "httptools"),
    ("infra", "worker", "tests/node"),
    ("python3", "-m", "tests.node.scripted_program"),
)


def push(recipe: Recipe, address: str, name: str) -> str:
    """Builds it and pushes it to a registry of this machine; its reference."""
    reference = f"{address}/{name}:latest"
    connections = Connections(is_plain=lambda host: True)
    registry = Registry(connections, Authorization(connections, no_login))
    build_and_push(recipe, Reference.parse(reference), registry)
    registry.close()
    return reference
