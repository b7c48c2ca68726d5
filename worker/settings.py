"""What the environment may say to a node agent; nothing else in the worker reads it."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.contracts.base import NodeId


class NodeSettings(BaseSettings):
    """Every field is `PLATFORM_NODE_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="PLATFORM_NODE_", frozen=True)

    control_plane_url: str = Field(
        default="http://127.0.0.1:8470",
        pattern=r"^https?://[^/?#]+/?$",
        description="Where the control plane answers.",
    )
    token: SecretStr = Field(min_length=16, description="Key of node agents.")
    id: NodeId = Field(pattern=r"^[A-Za-z0-9._-]{1,128}$", description="This node's name.")
    state_dir: Path = Field(description="Folder for logs and fetched models.")
    host: str = Field(
        default="127.0.0.1", description="Address replicas listen on and are reached at."
    )
    runtime: Literal["process", "container"] = Field(
        default="process",
        description="What workers run as: processes, or containers of containerd.",
    )
    image: str | None = Field(
        default=None,
        max_length=512,
        description="The image of containers whose revision pins none: registry/name:tag.",
    )
    containerd: Path = Field(
        default=Path("/run/containerd/containerd.sock"),
        description="The socket of the containerd that runs them.",
    )
    containerd_namespace: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9._-]{1,76}$",
        description="Where containerd keeps their image, and them.",
    )
    snapshotter: str = Field(
        default="overlayfs",
        pattern=r"^[a-z0-9-]{1,64}$",
        description="Which of its snapshotters has the image's layers.",
    )
    pull_socket: Path | None = Field(
        default=None,
        description="Where the snapshotter of this node pulls; unset starts a program for a pull.",
    )
    weights_socket: Path | None = Field(
        default=None,
        description="Where the snapshotter of this node gives weights; unset reads their source.",
    )
    plain_http: frozenset[str] = Field(
        default=frozenset(),
        description="JSON list of registries without TLS that models may come from, host:port.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe event that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How events are written to standard error."
    )

    @model_validator(mode="after")
    def _containers_of_something(self) -> Self:
        if self.runtime == "container" and self.image is None:
            raise ValueError("containers need an image: set PLATFORM_NODE_IMAGE")
        return self

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def cache_dir(self) -> Path:
        return self.state_dir / "models"

    @property
    def containers_dir(self) -> Path:
        return self.state_dir / "containers"


# Threads of OpenMP that spin at the end of each parallel region starve whatever else runs on the
# cores: a decode step of SmolLM2 beside a busy process took up to 2.8 s. A moment of it pays.
_OPENMP = {"GOMP_SPINCOUNT": "5000"}
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
# Looking for them in everything that is installed takes 14 ms, and we have none.
_PYDANTIC = {"PYDANTIC_DISABLE_PLUGINS": "__all__"}


def visible_gpus() -> tuple[str, ...] | None:
    """The GPUs that are left to this node, by place or id; None: all of them."""
    named = os.environ.get(_VISIBLE_GPUS)  # noqa: TID251 - settings may
    if named is None:
        return None
    return tuple(name.strip() for name in named.split(",") if name.strip())


def child_environment() -> dict[str, str]:
    """What workers inherit: everything but what is the agent's alone, its token above all.

    They see no GPU before they are given some.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - settings may
        if not name.startswith("PLATFORM_")
    }
    return _OPENMP | _PYDANTIC | inherited | {_VISIBLE_GPUS: ""}


def pull_environment() -> dict[str, str]:
    """What the program that pulls images inherits: what workers do, and its own settings."""
    own = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251 - settings may
        if name.startswith("PLATFORM_SNAPSHOTTER_")
    }
    return child_environment() | own


def container_environment() -> dict[str, str]:
    """What containers get beside their image's own: nothing of this machine's."""
    return _OPENMP | _PYDANTIC | {_VISIBLE_GPUS: ""}
