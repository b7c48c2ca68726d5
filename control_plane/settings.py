"""What the environment may say to the control plane; nothing else reads it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_state_dir() -> Path:
    return Path("~/.local/share/firstlight").expanduser()


class Settings(BaseSettings):
    """Every field can be set as `PLATFORM_<NAME>`; all have defaults that work on one machine."""

    model_config = SettingsConfigDict(env_prefix="PLATFORM_", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8470, ge=0, le=65535, description="Port; 0 takes a free one.")
    state_dir: Path = Field(
        default_factory=_default_state_dir,
        description="Folder for the embedded Redis, logs and caches.",
    )
    redis_url: str | None = Field(
        default=None, description="An external Redis or Valkey; unset starts an embedded one."
    )
    redis_durable: bool = Field(
        default=False,
        description="An external one keeps every acknowledged write, and is not asked whether.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="An admin's key; without it and any other key, nobody is asked for one.",
    )
    node_token: SecretStr | None = Field(
        default=None, min_length=16, description="Key of node agents; unset makes a fresh one."
    )
    capacity: Literal["local", "static", "ec2", "none"] = Field(
        default="local",
        description="Where machines come from: local starts an agent here, static (or none) uses "
        "those whose agents register themselves, ec2 launches them.",
    )
    ec2_deployment: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="The tag firstlight:deployment of the Auto Scaling groups that are ours.",
    )
    ec2_queue_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        max_length=2048,
        description="The SQS queue of their events; unset: they are only looked at.",
    )
    runtime: Literal["process", "container"] = Field(
        default="process",
        description="What workers run as on the agent started here: processes, or containers.",
    )
    image: str | None = Field(
        default=None,
        max_length=512,
        description="The image of containers whose model names none; each revision pins it.",
    )
    image_sources: frozenset[str] | None = Field(
        default=None,
        description="JSON list of registries or repositories of which models may name images; "
        "unset: all on the internet, and where no key is asked for those of private networks, too. "
        "Weights of oci:// may come of those listed, in private networks or not, "
        "and of others as if it were unset.",
    )
    index_images: bool | None = Field(
        default=None,
        description="Index images at deploy, with a login that may push; unset: unless the only "
        "machine is this one and PLATFORM_SNAPSHOTTER overlayfs.",
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
        description="Where this machine's snapshotter pulls; unset starts a program for a pull.",
    )
    weights_socket: Path | None = Field(
        default=None,
        description="Where this machine's snapshotter gives weights; unset reads their source.",
    )
    plain_http: frozenset[str] = Field(
        default=frozenset(),
        description="JSON list of registries without TLS that models and images may come from.",
    )
    standby_max: int = Field(
        default=4, ge=0, le=64, description="Standby workers a node keeps at most."
    )
    standby_machines_max: int = Field(
        default=4, ge=0, le=64, description="Machines of a kind kept in standby at most."
    )
    sleepers_max: int = Field(
        default=8, ge=0, le=1000, description="Sleeping workers a node keeps at most."
    )
    sleepers_memory: float = Field(
        default=0.5, ge=0, le=1, description="Share of a node's memory that they may hold."
    )
    jobs_max_bytes: int = Field(
        default=1 << 30, ge=1 << 20, le=1 << 40, description="Bytes of jobs kept at most."
    )
    jobs_keep_s: float = Field(
        default=24 * 3600, ge=1, le=365 * 24 * 3600, description="Seconds a finished job is kept."
    )
    jobs_keep_dead_s: float = Field(
        default=14 * 24 * 3600,
        ge=1,
        le=365 * 24 * 3600,
        description="Seconds a dead letter is kept.",
    )
    results_url: str | None = Field(
        default=None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[A-Za-z0-9._/-]{0,500})?$",
        description="s3://bucket/prefix for results above 64 KiB; unset takes a folder.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None, min_length=16, description="Key that signs webhooks; unset allows none."
    )
    webhook_private: bool = Field(
        default=False, description="Webhooks may be of private networks, and plain http."
    )
    drain_s: float = Field(
        default=10, ge=0, le=3600, description="Seconds running requests get when stopping."
    )
    keep_alive_s: int = Field(
        default=75,
        ge=1,
        le=4100,
        description="Seconds an idle connection is kept: more than proxies before it keep theirs.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe event that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How events are written to standard error."
    )

    @property
    def indexes_images(self) -> bool:
        """Whether some node may mount what is indexed."""
        if self.index_images is not None:
            return self.index_images
        return self.capacity == "none" or self.snapshotter != "overlayfs"

    @model_validator(mode="after")
    def _containers_of_something(self) -> Self:
        if self.runtime == "container" and self.image is None:
            raise ValueError("containers need an image: set PLATFORM_IMAGE")
        return self

    @model_validator(mode="after")
    def _groups_of_somebody(self) -> Self:
        if self.capacity == "ec2" and self.ec2_deployment is None:
            raise ValueError("which groups are ours is not known: set PLATFORM_EC2_DEPLOYMENT")
        return self


def inherited_environment() -> Mapping[str, str]:
    """What this process was started with, for the programs it starts."""
    return os.environ  # noqa: TID251 - settings may
