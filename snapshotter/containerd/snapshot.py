"""A snapshot as containerd speaks of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What may be done with a snapshot."""

    VIEW = "view"  # mounted read-only
    ACTIVE = "active"  # mounted writable, can be committed
    COMMITTED = "committed"  # can be a parent, never changes


class Reason(StrEnum):
    """containerd's errors, by its own names (errdefs)."""

    NOT_FOUND = "not found"
    ALREADY_EXISTS = "already exists"
    FAILED_PRECONDITION = "failed precondition"
    INVALID_ARGUMENT = "invalid argument"


class Refused(Exception):
    """A call cannot be answered; containerd acts on the reason."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{detail}: {reason.value}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot itself takes on this disk, without its parents."""

    size_bytes: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One row: `parent` is the name of the snapshot below it, or ""."""

    id: int
    name: str
    parent: str
    kind: Kind
    created_ns: int  # unix time
    updated_ns: int
    labels: Mapping[str, str]
    layer: str | None = None  # of one that was not unpacked: the mounted file's name
    usage: Usage = Usage()  # of a committed one


def masked(
    labels: Mapping[str, str], new: Mapping[str, str], paths: Sequence[str], *, name: str
) -> dict[str, str]:
    """The labels after an update by a field mask; no paths replace them all.

    Raises Refused for a field that cannot change.
    """
    changed = dict(labels) if paths else dict(new)
    for path in paths:
        if path == "labels":
            changed = dict(new)
        elif path.startswith("labels."):
            label = path.removeprefix("labels.")
            changed[label] = new.get(label, "")
        else:
            detail = f"cannot update {path!r} field on snapshot {name!r}"
            raise Refused(Reason.INVALID_ARGUMENT, detail)
    return kept_labels(changed)


def kept_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels without value are none, for containerd."""
    return {name: value for name, value in labels.items() if value}
