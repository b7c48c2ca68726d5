"""A block device made of a file, for kernels whose EROFS mounts none directly."""

import errno
import fcntl
import os
import struct
from pathlib import Path

_CONTROL = Path("/dev/loop-control")
_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A  # Linux 5.8
_READ_ONLY, _AUTO_CLEAR = 1, 4
_CONFIG_BYTES = 304  # struct loop_config
_FLAGS_AT = 60  # of its info.lo_flags
_MOST_TRIES = 20


def attach(file: Path, *, block_bytes: int = 512) -> tuple[Path, int]:
    """A read-only loop device of the file, and a descriptor that keeps it until it is mounted.

    The device is freed with its last user. Raises OSError.
    """
    backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(_MOST_TRIES):
            device = Path(f"/dev/loop{_free_number()}")
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, _CONFIGURE, _config(backing, block_bytes))
                return device, descriptor
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:  # somebody else was given the same one
                    raise
        raise OSError(errno.EBUSY, "every free loop device was taken by others")
    finally:
        os.close(backing)


def _free_number() -> int:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _GET_FREE)
    finally:
        os.close(control)


def _config(backing: int, block_bytes: int) -> bytearray:
    config = bytearray(_CONFIG_BYTES)
    struct.pack_into("<II", config, 0, backing, block_bytes)
    struct.pack_into("<I", config, _FLAGS_AT, _READ_ONLY | _AUTO_CLEAR)
    return config
