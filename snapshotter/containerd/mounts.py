"""What containerd has to mount to see a snapshot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snapshotter.containerd.snapshot import Kind


@dataclass(frozen=True, slots=True)
class Mount:
    """An argument vector of mount(2)."""

    type: str
    source: str
    options: tuple[str, ...]


def mount_of(kind: Kind, *, files: Path, work: Path, below: Sequence[Path]) -> Mount:
    """One mount: `below` are the folders of the parents, the nearest first.

    overlayfs needs a lower folder, and two of them where nothing is written: else a bind will do.
    """
    match kind, below:
        case Kind.ACTIVE, []:
            return Mount("bind", str(files), ("rw", "rbind"))
        case Kind.ACTIVE, _:
            writable: tuple[str, ...] = (f"workdir={work}", f"upperdir={files}")
        case _, []:
            return Mount("bind", str(files), ("ro", "rbind"))
        case _, [only]:
            return Mount("bind", str(only), ("ro", "rbind"))
        case _:
            writable = ()
    lower = "lowerdir=" + ":".join(str(folder) for folder in below)
    # index=off: a lower layer may be mounted below many containers at once
    return Mount("overlay", "overlay", ("index=off", *writable, lower))
