"""Digests of pieces are those of hashlib, whoever makes them."""

import hashlib
import os
import random

import pytest

from infra.hashing.build import library_path
from infra.hashing.pieces import HashPieces, hash_pieces, native_hash, one_by_one

PIECE = 1 << 12
CONTENT = random.Random(3).randbytes(9 * PIECE)
_NATIVE = native_hash()

if not library_path().exists() and os.environ.get("CI"):  # noqa: TID251 - says whether this is CI
    raise RuntimeError("what hashes pieces is not built")


@pytest.fixture(params=["one by one", "native"])
def hashing(request: pytest.FixtureRequest) -> HashPieces:
    if request.param == "one by one":
        return one_by_one
    if _NATIVE is None:
        pytest.skip("not built, or not for this CPU")
    return _NATIVE


@pytest.mark.parametrize(
    "size",
    [
        *(0, 1, 55, 56, 63, 64, 65, 119, 120, 128),  # around the ends of a block's padding
        *(PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 7, 4 * PIECE, 5 * PIECE + 64),
        *(7 * PIECE + 56, 8 * PIECE, 9 * PIECE),
    ],
)
def test_every_piece_has_its_own_digest(hashing: HashPieces, size: int) -> None:
    digests = hashing(memoryview(bytearray(CONTENT[:size])), PIECE)

    assert digests == b"".join(
        hashlib.sha256(CONTENT[start : min(size, start + PIECE)]).digest()
        for start in range(0, size, PIECE)
    )


@pytest.mark.parametrize("piece", [1000, 64, 100])
def test_pieces_need_not_be_whole_blocks(hashing: HashPieces, piece: int) -> None:
    memory = memoryview(bytearray(CONTENT[:4567]))

    assert hashing(memory, piece) == one_by_one(memory, piece)


def test_memory_that_is_only_read_is_hashed_as_well() -> None:
    memory = memoryview(CONTENT)

    assert hash_pieces(memory, PIECE) == one_by_one(memory, PIECE)
    assert hash_pieces(memoryview(bytearray(CONTENT))[5:], PIECE) == one_by_one(memory[5:], PIECE)
