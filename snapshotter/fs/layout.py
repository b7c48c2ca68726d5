"""Where the file system of layers keeps what it keeps, below one folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """The folder is for root alone: layers have files that set user ids."""

    root: Path

    def __post_init__(self) -> None:
        """The kernel's list of mounts knows no symbolic links."""
        object.__setattr__(self, "root", self.root.resolve())

    @property
    def files(self) -> Path:
        """The FUSE mount: one file for each layer."""
        return self.root / "files"

    @property
    def layers(self) -> Path:
        """One EROFS mount for each layer."""
        return self.root / "layers"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog"

    @property
    def control(self) -> Path:
        """The data process's socket."""
        return self.root / "control.sock"

    @property
    def lock(self) -> Path:
        """Held by the one keeper."""
        return self.root / "keeper.lock"

    @property
    def data_lock(self) -> Path:
        """Held by the one data process."""
        return self.root / "data.lock"

    def make(self) -> None:
        """Makes the folders that are missing."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.files, self.layers, self.catalog):
            if not folder.is_mount():
                folder.mkdir(mode=0o700, exist_ok=True)
