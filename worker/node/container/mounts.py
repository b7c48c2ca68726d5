"""Puts a folder of this machine into a running container, where nothing else of it is seen.

A detached copy of the mount (open_tree(2), mount_setattr(2): Linux 5.12) is attached in the
container's mount namespace and nowhere else, so that it ends with the container whoever dies first.
"""

import ctypes
import os
import struct
import threading
from pathlib import Path

# Every architecture has the same numbers for system calls that are younger than 2019.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_AT_EMPTY_PATH = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
_AT_FDCWD = -100
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000

_libc = ctypes.CDLL(None, use_errno=True)


def mount_into(pid: int, source: Path, target: str, *, is_writable: bool = False) -> None:
    """`target` is a path in the mount namespace of that process; its last part is made.

    Blocks. Raises OSError. The folder's own mounts below are not part of it.
    """
    tree = _detached(source, is_writable=is_writable)
    try:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _in_namespace(namespace, tree, target.encode())
        finally:
            os.close(namespace)
    finally:
        os.close(tree)


def _detached(source: Path, *, is_writable: bool) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    tree = _checked(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags), str(source))
    attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC
    if not is_writable:
        attributes |= _MOUNT_ATTR_RDONLY
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)  # struct mount_attr
    done = _libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, wanted, len(wanted))
    try:
        _checked(done, str(source))
    except OSError:
        os.close(tree)
        raise
    return tree


def _in_namespace(namespace: int, tree: int, target: bytes) -> None:
    """In a thread of its own, which never comes back from there: it ends."""
    errors: list[OSError] = []

    def attach() -> None:
        try:
            _checked(_libc.unshare(_CLONE_FS), "unshare")
            _checked(_libc.setns(namespace, _CLONE_NEWNS), "setns")
            if _libc.mkdir(target, 0o755) != 0 and ctypes.get_errno() != 17:  # it is there
                _checked(-1, target.decode())
            _checked(
                _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH),
                target.decode(),
            )
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=attach, name="mount")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
