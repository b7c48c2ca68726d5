"""Loads torch's machine code in a thread, while Python imports what needs none of it."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In the order of torch/__init__.py, whose import then finds them loaded. They know no Python, so
# that what they run when they are loaded needs no interpreter lock.
_LIBRARIES = (("libtorch_global_deps.so", ctypes.RTLD_GLOBAL), ("libtorch_cpu.so", 0))
_RTLD_NOW = 2  # dlopen(3)


@contextmanager
def loading_code_of(torch: Path | None) -> Iterator[None]:
    """Loads the libraries of that folder beside what is done inside; none without a folder.

    It is 0.2 s of relocations and of registering operators. The loader does one library at a time
    and makes others wait with the interpreter lock held: who imports machine code inside gains
    nothing. What cannot be loaded here, the import that needs it will complain about.
    """
    if torch is None:
        yield
        return
    loading = threading.Thread(target=_load, args=(torch / "lib",), name="torch-code")
    loading.start()
    try:
        yield
    finally:
        loading.join()


def _load(folder: Path) -> None:
    # ctypes.CDLL() holds the interpreter lock while it loads (CPython 3.11); a call does not.
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for name, scope in _LIBRARIES:
        if not dlopen(bytes(folder / name), _RTLD_NOW | scope):
            return
