"""SHA-256 of each of many pieces: four at a time where that is built and the CPU can, else one."""

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache

import structlog

from infra.hashing.build import library_path

log = structlog.get_logger()

DIGEST_BYTES = 32
HashPieces = Callable[[memoryview, int], bytes]


def hash_pieces(memory: memoryview, piece_bytes: int) -> bytes:
    """The digests of pieces of that size, one after the other; the last one may be shorter.

    Other threads run meanwhile.
    """
    native = None if memory.readonly else native_hash()  # whose address ctypes does not tell
    return (native or one_by_one)(memory, piece_bytes)


def one_by_one(memory: memoryview, piece_bytes: int) -> bytes:
    """As `hash_pieces`, on any machine."""
    return b"".join(
        hashlib.sha256(memory[start : start + piece_bytes]).digest()
        for start in range(0, len(memory), piece_bytes)
    )


@cache
def native_hash() -> HashPieces | None:
    """As `hash_pieces`, of memory that may be written; None where it cannot be had."""
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError as error:
        log.warning("hashing.slow", why=str(error), hint="run scripts/install", instead="hashlib")
        return None
    library.firstlight_can_hash.restype = ctypes.c_bool
    if not library.firstlight_can_hash():
        log.info("hashing.slow", why="this CPU has no instructions for SHA-256", instead="hashlib")
        return None
    function = library.firstlight_hash_pieces
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_char_p)
    function.restype = None

    def hash_four(memory: memoryview, piece_bytes: int) -> bytes:
        if not memory:
            return b""
        digests = ctypes.create_string_buffer(-(-len(memory) // piece_bytes) * DIGEST_BYTES)
        first = ctypes.c_char.from_buffer(memory)
        function(ctypes.addressof(first), len(memory), piece_bytes, digests)
        return digests.raw

    return hash_four
