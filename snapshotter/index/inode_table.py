"""A layer's inodes in columns, which a file system is made of faster than of objects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from infra.errors import ImageInvalid
from snapshotter.index.entry import Kind
from snapshotter.index.layer_tree import OPAQUE, Node

_IS_FOLDER: Final = bytes(kind == Kind.DIRECTORY for kind in range(256))
_U64: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory with the part of `names` and `inodes` that is its own."""

    inode: int
    parent: int
    begin: int
    end: int


@dataclass(frozen=True)
class InodeTable:
    """Inode 0 is the root. Each other one has a number when its first name comes: so names and
    their numbers make a tree, whatever they are.
    """

    kinds: bytes  # Kind, a byte an inode
    modes: Sequence[int]
    uids: Sequence[int]
    gids: Sequence[int]
    mtimes: Sequence[int]  # as 64 bits, which they are in EROFS
    sizes: Sequence[int]  # of a FILE, others have 0
    offsets: Sequence[int]  # of a FILE's bytes in the tar
    names: Sequence[bytes]  # folder after folder, sorted in each
    inodes: Sequence[int]  # of each name: a new one, or an earlier one that is no folder
    num_names: Sequence[int]  # of each folder, in the order of `folders`
    targets: Mapping[int, bytes] = field(default_factory=dict)  # of symbolic links
    xattrs: Mapping[int, Mapping[str, bytes]] = field(default_factory=dict)
    devices: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # others than 0:0

    def __len__(self) -> int:
        return len(self.kinds)

    @classmethod
    def of(cls, root: Node) -> Self:
        """The table of a tree."""
        nodes, names, inodes, num_names = [root], [], [], []
        number = {id(root): 0}
        folders = [root]
        while folders:
            folder = folders.pop()
            below = []
            for name, node in sorted(folder.children.items()):
                if id(node) not in number:
                    number[id(node)] = len(nodes)
                    nodes.append(node)
                    if node.kind is Kind.DIRECTORY:
                        below.append(node)
                names.append(name)
                inodes.append(number[id(node)])
            num_names.append(len(folder.children))
            folders += reversed(below)
        return cls(
            kinds=bytes(node.kind for node in nodes),
            modes=[node.mode for node in nodes],
            uids=[node.uid for node in nodes],
            gids=[node.gid for node in nodes],
            mtimes=[node.mtime & _U64 for node in nodes],
            sizes=[node.size for node in nodes],
            offsets=[node.offset for node in nodes],
            names=names,
            inodes=inodes,
            num_names=num_names,
            targets={i: node.target for i, node in enumerate(nodes) if node.kind is Kind.SYMLINK},
            xattrs={i: said for i, node in enumerate(nodes) if (said := _xattrs_of(node))},
            devices={i: node.device for i, node in enumerate(nodes) if any(node.device)},
        )

    def of_kind(self, kind: Kind) -> Iterator[int]:
        """The inodes of a kind, in order."""
        inode = self.kinds.find(kind)
        while inode >= 0:
            yield inode
            inode = self.kinds.find(kind, inode + 1)

    def folders(self) -> Iterator[Folder]:
        """Every folder: after its parent, and beneath it before the parent's next one.

        Raises ImageInvalid where the columns are those of no tree.
        """
        is_folder = self.kinds.translate(_IS_FOLDER)
        waiting = [(0, 0)]
        begin = 0
        for num_names in self.num_names:
            if not waiting:
                raise ImageInvalid("the layer's index has a folder without a name")
            inode, parent = waiting.pop()
            end = begin + num_names
            yield Folder(inode, parent, begin, end)
            below = [it for it in self.inodes[begin:end] if is_folder[it]]
            waiting += [(it, inode) for it in reversed(below)]
            begin = end
        if waiting:
            raise ImageInvalid("the layer's index has a folder that is not described")


def _xattrs_of(node: Node) -> Mapping[str, bytes]:
    return node.xattrs | {OPAQUE: b"y"} if node.is_opaque else node.xattrs
