import gzip
import io
import struct
import zlib
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import ImageInvalid, PlatformError, SourceUnavailable
from snapshotter.blob.codec import RawCodec, codec_of
from snapshotter.blob.source import Decoded, MemorySource
from snapshotter.index import gzip_spans
from snapshotter.index.build import index_layer
from snapshotter.index.chunk_table import UNKNOWN, Chunk, ChunkTable
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.erofs_writer import erofs_image
from snapshotter.index.gzip_spans import GzipPoint, inflate_span
from snapshotter.index.inode_table import InodeTable
from snapshotter.index.layer_index import LayerIndex
from snapshotter.index.tar_scan import TarScanner
from snapshotter.index.zstd_frames import CHUNK_BYTES, cuts, write_frames
from tests.snapshotter.makers import digest_of
from tests.snapshotter.tars import END, file, gzipped, layer_tar, noise, words

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN = "application/vnd.oci.image.layer.v1.tar"

TAR = layer_tar(
    {
        "lib/torch.so": words(1_200_000),
        "lib/model.bin": noise(1_100_000),
        "lib/zeros": bytes(300_000),
        **{f"py/module{number}.py": words(3000, number) for number in range(50)},
    }
)


@pytest.fixture
def small_spans(monkeypatch):
    monkeypatch.setattr(gzip_spans, "SPAN_BYTES", 100_000)


def index(layer: bytes, media_type: str, folder: Path) -> LayerIndex:
    path = folder / "layer"
    path.write_bytes(layer)
    return index_layer(path, layer=digest_of(layer), media_type=media_type)


def converted(tar: bytes) -> bytes:
    target, scanner = io.BytesIO(), TarScanner()
    scanner.feed(tar)
    write_frames(io.BytesIO(tar), cuts(scanner.finish(), len(tar)), target)
    return target.getvalue()


def read_all(index: LayerIndex, layer: bytes) -> bytes:
    """Every chunk by itself, as a node reads them."""
    source = Decoded(MemorySource(layer), codec_of(index))
    parts = [b"".join(source.chunks([chunk])) for chunk in index.table]
    for chunk, part in zip(index.table, parts, strict=True):
        assert chunk.is_genuine(part)
    return b"".join(parts)


def stored_blocks(tar: bytes) -> bytes:
    return gzip.compress(tar, 0, mtime=0)


def many_members(tar: bytes) -> bytes:
    """As pigz, eStargz and `cat a.gz b.gz` make them."""
    step = 377_777
    members = [gzipped(tar[begin : begin + step]) for begin in range(0, len(tar), step)]
    return b"".join(members) + bytes(100)


def other_flush_points(tar: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = []
    for begin in range(0, len(tar), 250_001):
        parts.append(deflater.compress(tar[begin : begin + 250_001]))
        parts.append(deflater.flush(zlib.Z_SYNC_FLUSH if begin % 2 else zlib.Z_FULL_FLUSH))
    return b"".join([*parts, deflater.flush()])


@pytest.mark.parametrize("compress", [gzipped, stored_blocks, many_members, other_flush_points])
def test_every_span_of_unmodified_gzip_can_be_read_by_itself(compress, tmp_path, small_spans):
    layer = compress(TAR)
    made = index(layer, GZIP, tmp_path)

    assert read_all(made, layer) == TAR
    assert made.diff_id == digest_of(TAR)
    assert len(made.table) > 10
    assert {*made.inodes.names} >= {b"torch.so", b"module7.py"}


def test_spans_begin_at_any_bit_of_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(gzip_spans, "SPAN_BYTES", 40_000)
    content = words(3_000_000, 5)
    path = tmp_path / "layer"
    path.write_bytes(gzipped(content))
    layer = memoryview(path.read_bytes())

    points = gzip_spans.map_gzip(path, most_bytes=1 << 30).points

    assert {point.num_bits for point in points} == set(range(8))
    for point in points[:-1]:
        span = inflate_span(point, layer[point.source_begin :], 30_000)
        assert span == content[point.offset : point.offset + 30_000]


def test_neighbouring_spans_come_from_one_read(tmp_path, small_spans):
    layer = gzipped(TAR)
    made = index(layer, GZIP, tmp_path)
    memory = MemorySource(layer)
    run = list(made.table)[3:9]

    parts = list(Decoded(memory, codec_of(made)).chunks(run))

    assert [sha256(part).digest() for part in parts] == [chunk.digest for chunk in run]
    assert len(memory.reads) == 1


def test_chunks_that_go_back_in_the_source_are_refused():
    table = ChunkTable([Chunk(0, 0, 5, bytes(32), 20, 5), Chunk(1, 5, 5, bytes(32), 2, 5)])
    source = Decoded(MemorySource(bytes(100), part_bytes=10), RawCodec())

    with pytest.raises(SourceUnavailable, match="do not follow"):
        list(source.chunks(list(table)))


def test_a_window_that_claims_to_be_huge_is_not_allocated():
    window = zstandard.ZstdCompressor().compress(bytes(1 << 20))

    with pytest.raises(SourceUnavailable, match="huge window"):
        inflate_span(GzipPoint(0, 0, 0, window), memoryview(b"x"), 10)


def test_a_converted_layer_is_an_ordinary_zstd_layer_of_the_same_tar(tmp_path):
    layer = converted(TAR)
    made = index(layer, ZSTD, tmp_path)

    with zstandard.ZstdDecompressor().stream_reader(layer, read_across_frames=True) as plain:
        assert plain.read() == TAR
    assert made.diff_id == digest_of(TAR)
    assert made.inodes == index(gzipped(TAR), GZIP, tmp_path).inodes
    assert read_all(made, layer) == TAR
    assert max(chunk.length for chunk in made.table) <= CHUNK_BYTES


def test_equal_large_files_of_two_images_have_equal_chunks(tmp_path):
    shared = noise(2_500_000, 9)
    first = layer_tar({"a": b"1" * 700, "lib/shared.so": shared, "z": b"x" * 5000})
    second = layer_tar({"other": noise(1_700_001), "opt/copy.so": shared})
    digests = []
    for tar in (first, second):
        layer = converted(tar)
        digests.append({chunk.digest for chunk in index(layer, ZSTD, tmp_path).table})

    assert len(digests[0] & digests[1]) == 3  # 1 MiB, 1 MiB and the rest


def test_an_uncompressed_layer_is_read_as_it_is(tmp_path):
    made = index(TAR, PLAIN, tmp_path)
    assert read_all(made, TAR) == TAR


@given(st.lists(st.integers(1, 5_000_000), max_size=12), st.integers(0, 3_000_000))
def test_cuts_cover_everything_and_are_never_far_apart(sizes, tail):
    entries = []
    position = 0
    for number, size in enumerate(sizes):
        position += 512
        entries.append(Entry(f"f{number}", Kind.FILE, 0o644, size=size, offset=position))
        position += -(-size // 512) * 512
    total = position + tail

    places = cuts(entries, total)

    assert places[0] == 0
    assert places[-1] == total
    steps = [after - before for before, after in pairwise(places)]
    assert all(0 < step <= CHUNK_BYTES for step in steps)


def test_an_index_is_the_same_after_the_wire(tmp_path, small_spans):
    tar = TAR[:-1024] + file(b"caf\xe9") + END
    made = index(gzipped(tar), GZIP, tmp_path)

    packed = made.packed()
    back = LayerIndex.parse(packed, layer=made.layer)

    assert back.packed() == packed
    assert erofs_image(back.inodes) == erofs_image(made.inodes)
    assert back.points == made.points
    assert list(back.table) == list(made.table)


def test_an_index_belongs_to_one_layer(tmp_path):
    made = index(gzipped(TAR), GZIP, tmp_path)
    with pytest.raises(ImageInvalid, match="not of"):
        LayerIndex.parse(made.packed(), layer=f"sha256:{'0' * 64}")


def test_an_index_of_an_earlier_version_says_what_to_do(tmp_path):
    made = index(gzipped(SMALL), GZIP, tmp_path)
    old = b"FLINDEX1" + made.packed()[8:]

    with pytest.raises(ImageInvalid, match="index the image again"):
        LayerIndex.parse(old, layer=made.layer)


SMALL = layer_tar({"bin/sh": words(5000), "etc/x": b"y"})


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return index(gzipped(SMALL), GZIP, tmp_path_factory.mktemp("small"))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_to_an_index_does_more_than_be_refused(small, data):
    packed = bytearray(small.packed())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(packed) - 1))
        packed[place] = data.draw(st.integers(0, 255))
    packed = (
        packed[: data.draw(st.integers(0, len(packed)))] if data.draw(st.booleans()) else packed
    )

    try:
        parsed = LayerIndex.parse(bytes(packed), layer=small.layer)
    except ImageInvalid:
        return
    erofs_image(parsed.inodes)
    try:
        read_all(parsed, gzipped(SMALL))
    except (PlatformError, AssertionError):
        return  # bytes that the digests refuse


def test_an_index_whose_chunks_could_be_anything_is_refused(small):
    first, *others = small.table
    table = ChunkTable([replace(first, digest=UNKNOWN), *others])

    with pytest.raises(ImageInvalid, match="without a digest"):
        LayerIndex.parse(replace(small, table=table).packed(), layer=small.layer)


def test_an_index_claims_no_more_than_its_layer_holds(small):
    size = len(gzipped(SMALL))
    assert LayerIndex.parse(small.packed(), layer=small.layer, layer_bytes=size)
    with pytest.raises(ImageInvalid, match=f"one of {size} bytes"):
        LayerIndex.parse(small.packed(), layer=small.layer, layer_bytes=size - 1)


def many_folders(number: int) -> InodeTable:
    """In the root, and nothing else."""
    names = [b"%07d" % each for each in range(number)]
    return InodeTable(
        kinds=bytes([Kind.DIRECTORY]) * (number + 1),
        **dict.fromkeys(
            ("modes", "uids", "gids", "mtimes", "sizes", "offsets"), [0] * (number + 1)
        ),
        names=names,
        inodes=range(1, number + 1),
        num_names=[number, *[0] * number],
    )


def test_a_small_index_of_a_small_layer_cannot_have_a_million_folders(small):
    hostile = replace(small, inodes=many_folders(20_000)).packed()
    assert len(hostile) < 100_000
    with pytest.raises(ImageInvalid, match=r"20001 files|huge list of files"):
        LayerIndex.parse(hostile, layer=small.layer)
    few = replace(small, inodes=many_folders(1000)).packed()
    assert len(LayerIndex.parse(few, layer=small.layer).inodes) == 1001


def test_an_index_cannot_claim_a_tar_that_its_layer_does_not_expand_to(small):
    (first, *_) = small.table
    length = 32 << 20
    table = ChunkTable([replace(first, length=length)])
    claimed = replace(small, table=table, points=small.points[:1]).packed()
    with pytest.raises(ImageInvalid, match=f"a tar of {length} bytes"):
        LayerIndex.parse(claimed, layer=small.layer)


def test_a_layer_with_more_folders_than_entries_brings_has_no_index(tmp_path):
    deep = "/".join("abcdefgh" * 5)  # 80 bytes: such a name takes no block of its own
    tar = b"".join(file(f"{number}/{deep}".encode()) for number in range(200)) + END
    with pytest.raises(ImageInvalid, match="files"):
        index(gzipped(tar), GZIP, tmp_path)


def test_a_gzip_bomb_is_refused(tmp_path):
    bomb = gzipped(bytes(24 << 20), 9)
    with pytest.raises(ImageInvalid, match="expands too far"):
        index(bomb, GZIP, tmp_path)


def test_a_zstd_bomb_is_refused(tmp_path):
    bomb = zstandard.compress(bytes(24 << 20))
    for hostile in (bomb, zstandard.compress(bytes(65 << 20))):
        with pytest.raises(ImageInvalid, match=r"expands too far|zstd frame of"):
            index(hostile, ZSTD, tmp_path)


def test_a_frame_that_holds_more_than_it_says_is_refused(tmp_path):
    frame = bytearray(zstandard.compress(noise(100_000)))
    place = frame.index(struct.pack("<I", 100_000))
    frame[place : place + 4] = struct.pack("<I", 100)
    with pytest.raises(ImageInvalid):
        index(bytes(frame), ZSTD, tmp_path)


@pytest.mark.parametrize("media_type", [GZIP, ZSTD, PLAIN])
@pytest.mark.parametrize("layer", [b"", b"hello", noise(5000), bytes(100)])
def test_what_is_no_layer_is_refused(layer, media_type, tmp_path):
    with pytest.raises(ImageInvalid):
        index(layer, media_type, tmp_path)


@pytest.mark.parametrize("cut", [1000, 100_000])
def test_a_gzip_layer_that_ends_early_is_refused(cut, tmp_path):
    with pytest.raises(ImageInvalid):
        index(gzipped(TAR)[:-cut], GZIP, tmp_path)


def test_other_things_than_layers_are_not_indexed(tmp_path):
    with pytest.raises(ImageInvalid, match="a layer of type"):
        index(TAR, "application/vnd.in-toto+json", tmp_path)


def test_damage_within_a_span_is_an_error_or_wrong_bytes_and_never_more_than_asked():
    layer = gzipped(words(200_000))
    point = GzipPoint(10, 0, 0, b"")
    for place in range(10, len(layer), len(layer) // 50):
        damaged = bytearray(layer)
        damaged[place] ^= 0x10
        try:
            assert len(inflate_span(point, memoryview(bytes(damaged))[10:], 50_000)) <= 50_000
        except SourceUnavailable:
            continue


@pytest.mark.parametrize(
    "chunks",
    [
        [Chunk(0, 1, 5, b"d" * 32, 0, 5)],
        [Chunk(0, 0, 0, b"d" * 32, 0, 5)],
        [Chunk(0, 0, 1 << 30, b"d" * 32, 0, 5)],
        [Chunk(0, 0, 5, b"d" * 32, 0, 1 << 30)],
        [Chunk(0, 0, 5, b"d" * 32, 1 << 50, 5)],
        [Chunk(0, 0, 5, b"d" * 32, 0, 5), Chunk(2, 5, 5, b"d" * 32, 0, 5)],
        [Chunk(0, 0, 5, b"d" * 32, 0, 5), Chunk(1, 6, 5, b"d" * 32, 0, 5)],
    ],
)
def test_a_table_with_gaps_or_without_bounds_is_refused(chunks):
    with pytest.raises(ImageInvalid):
        ChunkTable(chunks)
