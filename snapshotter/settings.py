"""What the environment may say to the snapshotter; nothing else of it reads it."""

from pathlib import Path
from socket import gethostname
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.registry.reference import is_this_machine

NODE_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ADDRESS = r"^([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]):\d{1,5}$"


class SnapshotterSettings(BaseSettings):
    """Every field is `PLATFORM_SNAPSHOTTER_<NAME>` in the environment; all have defaults."""

    model_config = SettingsConfigDict(env_prefix="PLATFORM_SNAPSHOTTER_", frozen=True)

    state_dir: Path = Field(
        default=Path("/var/lib/firstlight/snapshotter"),
        description="Folder for snapshots, mounts and chunks; not itself on overlayfs.",
    )
    cache_bytes: int = Field(
        default=64 << 30, ge=64 << 20, description="Bytes of fetched layers kept at most."
    )
    read_deadline_s: float = Field(
        default=30,
        gt=0,
        le=600,
        description="Seconds a program waits for bytes of a layer before its read fails.",
    )
    background_bytes_per_s: float = Field(
        default=25e6,
        gt=0,
        description="How fast the rest of an image is fetched once its program is ready.",
    )
    share_traces: bool = Field(
        default=False,
        description="Push the trace of an image's first start beside it; needs a login that may.",
    )
    socket: Path = Field(
        default=Path("/run/firstlight/snapshotter.sock"),
        description="Where containerd finds the snapshotter.",
    )
    name: str = Field(
        default="firstlight",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="What containerd's configuration calls the snapshotter.",
    )
    containerd_socket: Path = Field(
        default=Path("/run/containerd/containerd.sock"), description="Where containerd answers."
    )
    containerd_namespace: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9._-]{1,76}$",
        description="Where containerd keeps our images; Kubernetes' are in k8s.io.",
    )
    plain_http: frozenset[str] = Field(
        default=frozenset(),
        description="JSON list of registries without TLS, host:port; this machine's need no entry.",
    )
    docker_config: Path = Field(
        default_factory=lambda: Path("~/.docker/config.json").expanduser(),
        description="The file that `docker login` writes, for registries that ask for a login.",
    )
    node: str = Field(
        default_factory=gethostname,
        pattern=NODE_ID,
        description="What other nodes know this one by; no two may have the same.",
    )
    peers_listen: str | None = Field(
        default=None,
        pattern=ADDRESS,
        description="host:port where other nodes ask for chunks; unset shares nothing.",
    )
    peers_address: str | None = Field(
        default=None,
        pattern=ADDRESS,
        description="host:port that other nodes are told; unset tells them peers_listen.",
    )
    peers_redis_url: str | None = Field(
        default=None, description="The Redis or Valkey in which nodes find one another."
    )
    peers_token: SecretStr | None = Field(
        default=None, min_length=16, description="What a node shows to be given anything."
    )
    peers_upload_bytes_per_s: float | None = Field(
        default=None, gt=0, description="What this node gives at most; unset gives all it can."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe event that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How events are written to standard error."
    )

    @model_validator(mode="after")
    def _peers_are_whole(self) -> Self:
        if self.peers_listen is not None:
            if self.peers_redis_url is None or self.peers_token is None:
                raise ValueError("peers_listen needs peers_redis_url and peers_token")
            if self.peers_address is None and self.peers_listen.startswith(("0.0.0.0:", "[::]:")):
                raise ValueError("peers_address: other nodes cannot reach a wildcard address")
        return self

    @property
    def fs_dir(self) -> Path:
        return self.state_dir / "fs"

    @property
    def chunks_dir(self) -> Path:
        return self.state_dir / "chunks"

    @property
    def traces_dir(self) -> Path:
        return self.state_dir / "traces"

    @property
    def indexes_dir(self) -> Path:
        return self.state_dir / "indexes"

    @property
    def pull_socket(self) -> Path:
        return self.state_dir / "pull.sock"

    @property
    def weights_socket(self) -> Path:
        return self.state_dir / "weights.sock"

    def is_plain(self, host: str) -> bool:
        """Whether to speak HTTP without TLS with a registry; containerd decides the same way."""
        return host in self.plain_http or is_this_machine(host)
