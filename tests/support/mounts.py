"""What is mounted where, and how to be rid of it."""

import subprocess
from pathlib import Path


def mounts_below(folder: Path) -> list[str]:
    """Mount points at or below a folder, the newest first."""
    inside = f"{folder.resolve()}/"
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")  # mountinfo has \040 for a space
        if f"{point}/".startswith(inside):
            points.append(point)
    return points[::-1]


def unmount_below(folder: Path) -> None:
    """Detaches every mount there, also those whose server is gone."""
    for point in mounts_below(folder):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
