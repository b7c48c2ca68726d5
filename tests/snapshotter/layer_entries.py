"""Entries of layers that nobody would make, some of which contradict themselves."""

from dataclasses import replace

from hypothesis import strategies as st

from snapshotter.index.entry import Entry, Kind

names = st.sampled_from(["a", "b", "c", "-", "é", "\udcff", "n" * 200, "m" * 255]) | st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..") and not name.startswith(".wh."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)
xattrs = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "security.capability", "trusted.x"]),
    st.binary(max_size=40) | st.binary(min_size=700, max_size=700),
    max_size=3,
)
ids = st.integers(0, 2**32 - 2)  # the last one is nobody


@st.composite
def an_entry(draw: st.DrawFn) -> Entry:
    path = draw(paths)
    kind = draw(st.sampled_from(Kind))
    folder, slash, name = path.rpartition("/")
    if draw(st.integers(0, 7)) == 0:
        hidden = draw(st.sampled_from([".wh..wh..opq", f".wh.{name[:60]}"]))
        return Entry(f"{folder}{slash}{hidden}", Kind.FILE, 0o644)
    return Entry(
        path="" if kind is Kind.DIRECTORY and draw(st.integers(0, 9)) == 0 else path,
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(ids),
        gid=draw(ids),
        mtime=draw(st.integers(-(2**40), 2**40)),
        size=draw(st.integers(0, 2**34)) if kind is Kind.FILE else 0,
        offset=draw(st.integers(0, 2**29)) * 512 if kind is Kind.FILE else 0,
        target=draw(paths) if kind is Kind.HARDLINK else draw(texts | st.just("t" * 4095)),
        device=draw(st.tuples(st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1))),
        xattrs=draw(xattrs),
    )


@st.composite
def layer_entries(draw: st.DrawFn) -> list[Entry]:
    """Entries in any order, hard links mostly to something that is there."""
    entries: list[Entry] = []
    for entry in draw(st.lists(an_entry(), max_size=25)):
        if entry.kind is Kind.HARDLINK and entries and draw(st.booleans()):
            entries.append(replace(entry, target=draw(st.sampled_from(entries)).path or "a"))
        else:
            entries.append(entry)
    return entries
