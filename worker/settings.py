"""What the environment may say to a node agent; nothing else in the worker reads it."""

import os
import socket
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.contracts.base import NodeId
from infra.errors import Invalid

LONGEST_TOKEN = 4096


def _host_name() -> NodeId:
    return NodeId(socket.gethostname())


class NodeSettings(BaseSettings):
    """Every field is `PLATFORM_NODE_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="PLATFORM_NODE_", frozen=True)

    control_plane_url: str = Field(
        default="http://127.0.0.1:8470",
        pattern=r"^https?://[^/?#]+/?$",
        description="Where the control plane answers.",
    )
    token: SecretStr | None = Field(
        default=None, min_length=16, description="Key of node agents, as the control plane has it."
    )
    token_file: Path | None = Field(
        default=None, description="A file with that key, where the environment should not have it."
    )
    id: NodeId = Field(
        default_factory=_host_name,
        pattern=r"^[A-Za-z0-9._-]{1,128}$",
        description="This node's name, which no other machine may have; unset: its host name, or "
        "its id on ec2.",
    )
    state_dir: Path = Field(
        default_factory=lambda: Path("~/.local/share/firstlight/node").expanduser(),
        description="Folder for logs and fetched models.",
    )
    host: str | None = Field(
        default=None,
        max_length=255,
        description="Address replicas listen on and are reached at; unset: the one from which this "
        "machine reaches the control plane.",
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
    cloud: Literal["none", "ec2"] = Field(
        default="none",
        description="Whose machine it is: of ec2, its metadata say who it is and what it is for.",
    )
    group: str | None = Field(
        default=None,
        max_length=255,
        description="The EC2 Auto Scaling group that waits for its word; unset: of none.",
    )
    metadata_url: str = Field(
        default="http://169.254.169.254",
        pattern=r"^http://[^/?#]+$",
        description="Where EC2 tells a machine of itself.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe event that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How events are written to standard error."
    )

    @model_validator(mode="after")
    def _some_key(self) -> Self:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("set one of PLATFORM_NODE_TOKEN and PLATFORM_NODE_TOKEN_FILE")
        return self

    @model_validator(mode="after")
    def _containers_of_something(self) -> Self:
        if self.runtime == "container" and self.image is None:
            raise ValueError("containers need an image: set PLATFORM_NODE_IMAGE")
        return self

    def key(self) -> str:
        """The key of node agents. Raises Invalid where its file has none."""
        if self.token is not None:
            return self.token.get_secret_value()
        assert self.token_file is not None
        try:
            with self.token_file.open() as file:
                text = file.read(LONGEST_TOKEN).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"the node's key cannot be read: {error}") from error
        if len(text) < 16:
            raise Invalid(f"{self.token_file} has no key of 16 characters or more")
        return text

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def cache_dir(self) -> Path:
        return self.state_dir / "models"

    @property
    def containers_dir(self) -> Path:
        return self.state_dir / "containers"


def node_settings() -> NodeSettings:
    """What the environment says. Raises Invalid, which names what is wrong and not its value."""
    try:
        return NodeSettings()
    except ValidationError as error:
        wrong = (
            "_".join(("PLATFORM_NODE", *map(str, it["loc"]))).upper() + f": {it['msg']}"
            if it["loc"]
            else it["msg"].removeprefix("Value error, ")
            for it in error.errors()
        )
        raise Invalid("; ".join(wrong), hint="see docs/settings.md") from None


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
