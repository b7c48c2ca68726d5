"""What the environment may say to the snapshotter; nothing else of it reads it."""

from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe event that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How events are written to standard error."
    )

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

    def is_plain(self, host: str) -> bool:
        """Whether to speak HTTP without TLS with a registry; containerd decides the same way."""
        if host in self.plain_http:
            return True
        name = host.rpartition(":")[0] or host
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"
