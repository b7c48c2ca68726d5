"""What a layer's inodes are after the wire, and what a stranger's may not be."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import ImageInvalid
from snapshotter.index.entry import Entry, Kind
from snapshotter.index.erofs_writer import erofs_image
from snapshotter.index.inode_table import InodeTable
from snapshotter.index.inode_wire import packed_inodes, parse_inodes
from snapshotter.index.layer_index import MALFORMED
from snapshotter.index.layer_tree import layer_tree
from tests.snapshotter.layer_entries import layer_entries
from tests.support.erofs import ErofsImage

LAYER_BYTES = 1 << 45

TABLE = InodeTable.of(
    layer_tree(
        [
            Entry("bin/sh", Kind.FILE, 0o755, size=1000, offset=512),
            Entry("bin/ash", Kind.HARDLINK, 0, target="bin/sh"),
            Entry("etc/link", Kind.SYMLINK, 0o777, target="../bin/sh"),
            Entry("etc/.wh..wh..opq", Kind.FILE, 0),
            Entry("etc/.wh.gone", Kind.FILE, 0),
            Entry("run/pipe", Kind.FIFO, 0o600, xattrs={"user.a": b"1"}),
        ]
    )
)
# the order of names: bin etc run, ash sh, gone link, pipe; of inodes the same, without sh
BIN, ETC, ASH = TABLE.inodes[0], TABLE.inodes[1], TABLE.inodes[3]


def scanned(entry: Entry) -> Entry:
    """As a tar's scanner would say it: it leaves out devices and has no time before 1970."""
    kind = Kind.FIFO if entry.kind in {Kind.CHAR, Kind.BLOCK} else entry.kind
    mtime = min(max(entry.mtime, 0), (1 << 33) - 1)
    xattrs = {name: it for name, it in entry.xattrs.items() if not name.startswith("trusted.")}
    return replace(entry, kind=kind, device=(0, 0), mtime=mtime, xattrs=xattrs)


@given(layer_entries().map(lambda entries: [scanned(entry) for entry in entries]))
def test_a_file_system_is_the_same_before_and_after_the_wire(entries: list[Entry]) -> None:
    try:
        table = InodeTable.of(layer_tree(entries))
    except ImageInvalid:
        return

    packed = packed_inodes(table)
    back = parse_inodes(packed, layer_bytes=LAYER_BYTES)

    assert packed_inodes(back) == packed
    assert erofs_image(back) == erofs_image(table)


@given(st.data())
def test_whatever_comes_over_the_wire_is_refused_or_a_tree(data: st.DataObject) -> None:
    packed = bytearray(packed_inodes(TABLE))
    for _ in range(data.draw(st.integers(1, 5))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))

    try:
        table = parse_inodes(bytes(packed), layer_bytes=LAYER_BYTES)
    except (ImageInvalid, *MALFORMED):
        return

    walked = list(ErofsImage(erofs_image(table)).walk())
    assert len(walked) == len(table.names) + 1
    assert len({found.nid for _, found in walked}) == len(table)


def changed(column: str, values: dict[int, object]) -> InodeTable:
    """The table with other values at some places of a column."""
    column_of = list(getattr(TABLE, column))
    for place, value in values.items():
        column_of[place] = value
    return replace(TABLE, **{column: bytes(column_of) if column == "kinds" else column_of})


@pytest.mark.parametrize(
    "hostile",
    [
        changed("names", {0: b".."}),
        changed("names", {0: b"."}),
        changed("names", {0: b""}),
        changed("names", {0: b"a/b"}),
        changed("names", {0: b"b" * 256}),
        changed("names", {0: b"bin\0bon"}),
        changed("names", {0: b"etc"}),  # twice in a folder
        changed("names", {0: b"zbin"}),  # not sorted
        changed("inodes", {4: BIN}),  # a folder with two names, which may be above itself
        changed("inodes", {4: 0}),
        changed("inodes", {4: 99}),
        changed("inodes", {0: ASH}),  # before its first name
        changed("kinds", {0: Kind.FILE}),
        changed("kinds", {ASH: Kind.BLOCK}),
        changed("kinds", {ASH: Kind.HARDLINK}),
        changed("kinds", {ASH: 99}),
        changed("kinds", {ASH: Kind.DIRECTORY}),  # that nothing describes
        changed("kinds", {ASH: Kind.SYMLINK}),  # that leads nowhere
        changed("kinds", {ASH: Kind.FIFO}),  # with bytes
        changed("kinds", {BIN: Kind.FIFO}),  # with files
        changed("modes", {ASH: 0o100644}),
        changed("modes", {ASH: 0o10000}),  # a file that hides others
        changed("mtimes", {ASH: 1 << 40}),
        changed("sizes", {ASH: LAYER_BYTES}),
        changed("sizes", {BIN: 1}),
        changed("num_names", {0: 4}),
        changed("num_names", {0: 2}),
        changed("num_names", {0: 0, 1: 5}),
        replace(TABLE, targets={}),
        replace(TABLE, targets=dict.fromkeys(TABLE.targets, b"")),
        replace(TABLE, targets=dict.fromkeys(TABLE.targets, b"x" * 4096)),
        replace(TABLE, targets=dict.fromkeys(TABLE.targets, b"a\x00b")),
        replace(TABLE, xattrs={ASH: {"trusted.overlay.redirect": b"/etc"}}),
        replace(TABLE, xattrs={ASH: {"user.overlay.redirect": b"/etc"}}),
        replace(TABLE, xattrs={99: {"user.a": b""}}),
        replace(TABLE, xattrs={-1: {"user.a": b""}}),
    ],
)
def test_a_hostile_table_is_refused(hostile: InodeTable) -> None:
    packed = packed_inodes(hostile)

    with pytest.raises((ImageInvalid, *MALFORMED)):
        parse_inodes(packed, layer_bytes=LAYER_BYTES)


def test_the_table_is_sound_where_nobody_changed_it() -> None:
    assert erofs_image(parse_inodes(packed_inodes(TABLE), layer_bytes=1512)) == erofs_image(TABLE)
    with pytest.raises(ImageInvalid, match="outside of the layer"):
        parse_inodes(packed_inodes(TABLE), layer_bytes=1511)


def test_what_would_take_more_memory_than_it_is_large_is_refused_by_its_counts() -> None:
    packed = bytearray(packed_inodes(TABLE))
    for place in range(3):
        damaged = bytearray(packed)
        damaged[4 * place : 4 * place + 4] = b"\xff" * 4
        with pytest.raises(ImageInvalid, match="files"):
            parse_inodes(bytes(damaged), layer_bytes=LAYER_BYTES)
