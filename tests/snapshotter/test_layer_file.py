"""A layer's metadata and stream read as one file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import SourceInvalid
from snapshotter.fs.layer_file import LayerFile
from snapshotter.fs.local_bytes import MemoryBytes, open_local


@given(st.binary(max_size=40), st.binary(max_size=40), st.data())
def test_every_range_is_that_of_both_in_a_row(
    metadata: bytes, stream: bytes, data: st.DataObject
) -> None:
    file = LayerFile("a", metadata, MemoryBytes(stream))
    whole = (metadata + stream).ljust(file.size, b"\0")
    offset = data.draw(st.integers(0, file.size))
    length = data.draw(st.integers(0, file.size - offset))

    assert file.size % 512 == 0
    assert file.size - len(metadata) - len(stream) < 512
    assert file.cached(offset, length) == whole[offset : offset + length]
    assert file.read(offset, length) == whole[offset : offset + length]


def test_metadata_is_here_while_the_stream_is_not() -> None:
    file = LayerFile("a", b"m" * 512, MemoryBytes(b"s" * 512, here=False))

    assert file.cached(0, 512) == b"m" * 512
    assert file.cached(0, 513) is None
    assert file.read(0, 513) == b"m" * 512 + b"s"


@pytest.mark.parametrize("spec", [{}, {"metadata": 1, "stream": 2}, {"metadata": "/nowhere"}])
def test_a_local_layer_that_is_not_there_is_refused(spec: dict[str, object]) -> None:
    with pytest.raises(SourceInvalid):
        open_local("a", spec)
