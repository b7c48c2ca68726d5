"""GPUs as the Container Device Interface describes them: what a container needs to use them.

https://github.com/cncf-tags/container-device-interface, its specification up to 0.8.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FOLDERS: Final = (Path("/etc/cdi"), Path("/var/run/cdi"))  # the later wins
GPU_KINDS: Final = frozenset({"nvidia.com/gpu", "amd.com/gpu"})
ALL: Final = "all"
MOST_FILES: Final = 64
MOST_BYTES: Final = 1 << 20  # of one file
_DEEPEST: Final = 16

_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Text = Annotated[str, Field(max_length=4096)]
_AbsolutePath = Annotated[str, Field(max_length=4096, pattern=r"^/[^\x00]*$")]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=1024)]


class CdiInvalid(Exception):
    """A file that cannot be believed; its name is in the message."""


@dataclass(frozen=True, slots=True)
class Edits:
    """What devices add to a container, in the words of the OCI runtime specification."""

    environment: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[dict[str, Any], ...] = ()
    allowed: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()
    hooks: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __or__(self, other: "Edits") -> "Edits":
        stages = [*self.hooks, *(stage for stage in other.hooks if stage not in self.hooks)]
        return Edits(
            {**self.environment, **other.environment},
            (*self.devices, *other.devices),
            (*self.allowed, *other.allowed),
            (*self.mounts, *other.mounts),
            {stage: [*self.hooks.get(stage, ()), *other.hooks.get(stage, ())] for stage in stages},
        )


NO_EDITS: Final = Edits()


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _DeviceNode(_Part):
    path: _AbsolutePath
    host_path: _AbsolutePath | None = Field(default=None, alias="hostPath")
    kind: Literal["b", "c", "u", "p"] | None = Field(default=None, alias="type")
    major: int | None = Field(default=None, ge=0, le=1 << 20)
    minor: int | None = Field(default=None, ge=0, le=1 << 20)
    mode: int | None = Field(default=None, alias="fileMode", ge=0, le=0o777)
    permissions: str = Field(default="rwm", pattern="^[rwm]{1,3}$")


class _Mount(_Part):
    source: _AbsolutePath = Field(alias="hostPath")
    target: _AbsolutePath = Field(alias="containerPath")
    options: _Texts = ()
    kind: _Text = Field(default="bind", alias="type")


class _Hook(_Part):
    stage: Literal[
        "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"
    ] = Field(alias="hookName")
    path: _AbsolutePath
    args: _Texts = ()
    env: _Texts = ()
    timeout: int | None = Field(default=None, ge=1, le=600)


class _ContainerEdits(_Part):
    env: _Texts = ()
    device_nodes: tuple[_DeviceNode, ...] = Field(default=(), alias="deviceNodes", max_length=512)
    mounts: tuple[_Mount, ...] = Field(default=(), max_length=1024)
    hooks: tuple[_Hook, ...] = Field(default=(), max_length=64)


class _Device(_Part):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
    edits: _ContainerEdits = Field(alias="containerEdits")


class _Spec(_Part):
    version: Annotated[str, Field(alias="cdiVersion", pattern=r"^0\.[3-8]\.[0-9]+$")]
    kind: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,128}/[A-Za-z0-9._-]{1,128}$")]
    edits: _ContainerEdits = Field(default=_ContainerEdits(), alias="containerEdits")
    devices: tuple[_Device, ...] = Field(max_length=512)


def read_gpus(folders: Iterable[Path] = FOLDERS) -> Edits:
    """What a container needs to reach every GPU that some file describes; nothing without files.

    Raises CdiInvalid for the first file that is malformed or too large.
    """
    found: dict[str, Edits] = {}
    for folder in folders:
        for path in _files(folder):
            spec = _read(path)
            if spec.kind not in GPU_KINDS:
                continue
            try:
                found[spec.kind] = _all_of(spec)
            except OSError as error:  # a device that is not there
                raise CdiInvalid(f"{path}: {error}") from error
    edits = NO_EDITS
    for each in found.values():
        edits |= each
    return edits


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix in {".json", ".yaml"})
    except OSError:
        return []
    if len(found) > MOST_FILES:
        raise CdiInvalid(f"{folder} has {len(found)} files, {MOST_FILES} are read at most")
    return found


def _read(path: Path) -> _Spec:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise CdiInvalid(f"{path} is larger than {MOST_BYTES} bytes")
        text = data.decode()
        _check_plain(text)
        return _Spec.model_validate(yaml.load(text, _Loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise CdiInvalid(f"{path}: {error}") from error


def _check_plain(text: str) -> None:
    """Neither aliases, which multiply what a file holds, nor nesting that no such file has."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"nests deeper than {_DEEPEST}")


def _all_of(spec: _Spec) -> Edits:
    """All its devices: the one that stands for all where there is one."""
    together = [device for device in spec.devices if device.name == ALL]
    edits = _edits(spec.edits)
    for device in together or spec.devices:
        edits |= _edits(device.edits)
    return edits


def _edits(told: _ContainerEdits) -> Edits:
    nodes = [_node(node) for node in told.device_nodes]
    return Edits(
        dict(_variables(told.env)),
        tuple(node for node, _ in nodes),
        tuple(allowed for _, allowed in nodes),
        tuple(
            {
                "destination": mount.target,
                "type": mount.kind,
                "source": mount.source,
                "options": list(mount.options),
            }
            for mount in told.mounts
        ),
        _hooks(told.hooks),
    )


def _variables(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition("=")
        yield name, value


def _node(told: _DeviceNode) -> tuple[dict[str, Any], dict[str, Any]]:
    """The device in the container, and the leave to use it."""
    kind, major, minor = told.kind, told.major, told.minor
    if major is None or minor is None or kind is None:
        status = Path(told.host_path or told.path).stat()
        kind = kind or ("b" if stat.S_ISBLK(status.st_mode) else "c")
        major = os.major(status.st_rdev) if major is None else major
        minor = os.minor(status.st_rdev) if minor is None else minor
    node: dict[str, Any] = {"path": told.path, "type": kind, "major": major, "minor": minor}
    node["fileMode"] = 0o666 if told.mode is None else told.mode
    allowed = {"allow": True, "type": kind, "major": major, "minor": minor}
    return node, allowed | {"access": told.permissions}


def _hooks(told: Iterable[_Hook]) -> dict[str, list[dict[str, Any]]]:
    hooks: dict[str, list[dict[str, Any]]] = {}
    for hook in told:
        made: dict[str, Any] = {"path": hook.path, "args": list(hook.args), "env": list(hook.env)}
        if hook.timeout is not None:
            made["timeout"] = hook.timeout
        hooks.setdefault(hook.stage, []).append(made)
    return hooks
