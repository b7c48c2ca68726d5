"""A layer's entries as a tree, the way overlayfs wants to see a layer."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from infra.errors import ImageInvalid
from snapshotter.index.entry import MOST_NAME_BYTES, Entry, Kind

OPAQUE = "trusted.overlay.opaque"

MOST_LINK_BYTES = 4095  # PATH_MAX, less its end

_WHITEOUT = b".wh."
_OPAQUE_MARK = b".wh..wh..opq"
_RESERVED = b".wh..wh."  # aufs keeps its own files beneath such names


@dataclass(slots=True, eq=False)
class Node:
    """An inode: hard links are several names of one node."""

    kind: Kind  # never HARDLINK
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    offset: int = 0
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    children: dict[bytes, "Node"] = field(default_factory=dict)  # of a DIRECTORY
    is_opaque: bool = False  # what lower layers have beneath it is hidden


def layer_tree(entries: Iterable[Entry]) -> Node:
    """The root of what an extraction of the layer would make, with overlayfs's whiteouts.

    A later entry replaces an earlier one of the same path (a directory keeps its children when
    a directory replaces it); parents that no entry names are directories of root, 0755. A whiteout
    hides what is beneath the layer, never what the layer has itself (OCI image spec, layer.md).
    Raises ImageInvalid.
    """
    root = Node(Kind.DIRECTORY)
    whiteouts: list[tuple[Node, bytes]] = []
    folders: dict[str, Node] = {"": root}  # by path: a pull waits for tens of thousands of these
    for entry in entries:
        if not entry.path:
            _become(root, _node(entry, root))
            continue
        above, _, last = entry.path.rpartition("/")
        folder = folders.get(above)
        if folder is None or entry.path.startswith("/"):
            *parents, name = _names(entry.path)
            folder = folders[above] = _folder(root, parents)
        else:
            (name,) = _names(last)
        if name == _OPAQUE_MARK:
            folder.is_opaque = True
        elif name.startswith(_RESERVED):
            continue
        elif name.startswith(_WHITEOUT):
            whiteouts.append((folder, _hidden(name)))
        elif _put(folder, name, _node(entry, root)):
            folders = {"": root}
    for folder, name in whiteouts:
        if (node := folder.children.get(name)) is None:
            folder.children[name] = Node(Kind.CHAR, mode=0)
        elif node.kind is Kind.DIRECTORY:
            node.is_opaque = True
    return root


def _names(path: str) -> list[bytes]:
    names = path.encode("utf-8", "surrogateescape").split(b"/")
    for name in names:
        if name in (b"", b".", b"..") or b"\0" in name:
            raise ImageInvalid(f"the layer has the path {path!r}")
        if len(name) > MOST_NAME_BYTES:
            raise ImageInvalid(f"a name of {len(name)} bytes", limit=MOST_NAME_BYTES)
    return names


def _folder(root: Node, parents: list[bytes]) -> Node:
    folder = root
    for name in parents:
        child = folder.children.get(name)
        if child is None:
            child = folder.children[name] = Node(Kind.DIRECTORY)
        elif child.kind is not Kind.DIRECTORY:
            raise ImageInvalid(f"{name!r} is no directory and has entries beneath it")
        folder = child
    return folder


def _hidden(name: bytes) -> bytes:
    hidden = name.removeprefix(_WHITEOUT)
    if hidden in (b"", b".", b".."):
        raise ImageInvalid(f"the layer has the whiteout {name!r}")
    return hidden


def _node(entry: Entry, root: Node) -> Node:
    if entry.kind is Kind.HARDLINK:
        return _target(entry, root)
    target = entry.target.encode("utf-8", "surrogateescape")
    if entry.kind is Kind.SYMLINK and (b"\0" in target or not 0 < len(target) <= MOST_LINK_BYTES):
        raise ImageInvalid(f"{entry.path!r} links to {target[:64]!r}")
    return Node(
        kind=entry.kind,
        mode=entry.mode & 0o7777,
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime,
        size=entry.size if entry.kind is Kind.FILE else 0,
        offset=entry.offset,
        target=target,
        device=entry.device,
        # Those of overlayfs are ours to write: a redirect would show paths that are not shown.
        xattrs={k: v for k, v in entry.xattrs.items() if not k.startswith("trusted.overlay.")},
    )


def _target(entry: Entry, root: Node) -> Node:
    """The node that a hard link names. Raises ImageInvalid when it is not in this layer."""
    node: Node | None = root
    for name in _names(entry.target):
        node = node and node.children.get(name)
    if node is None or node.kind is Kind.DIRECTORY:
        raise ImageInvalid(f"{entry.path!r} is a hard link to {entry.target!r}, which is no file")
    return node


def _put(folder: Node, name: bytes, node: Node) -> bool:
    """Whether a folder is gone by that, with all that was in it."""
    present = folder.children.get(name)
    if present is not None and present.kind is node.kind is Kind.DIRECTORY:
        _become(present, node)
        return False
    folder.children[name] = node
    return present is not None and present.kind is Kind.DIRECTORY


def _become(folder: Node, described: Node) -> None:
    """The folder takes the attributes of another, and keeps its children."""
    if described.kind is not Kind.DIRECTORY:
        raise ImageInvalid("the root of the layer is no directory")
    folder.mode, folder.uid, folder.gid = described.mode, described.uid, described.gid
    folder.mtime, folder.xattrs = described.mtime, described.xattrs
