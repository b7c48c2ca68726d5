"""The files of the flat folder, found by name or by node id."""

import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from threading import Lock

from infra.errors import Conflict, Invalid
from snapshotter.fs.fuse_wire import ROOT
from snapshotter.fs.layer_trees import LayerTree, tree_key
from snapshotter.fs.ports import ServedFile

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:]{0,199}")

_Files = Mapping[int, ServedFile]


def node_id(name: str) -> int:
    """The file's node id: the same in every process, since the kernel outlives ours."""
    return (int.from_bytes(sha256(name.encode()).digest()[:8]) >> 3) + ROOT + 1


def checked_name(name: str) -> str:
    """The name; raises Invalid unless it can be a file's."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name[:100]!a} cannot be the name of a served file")
    return name


class NotServedYet(Exception):
    """The file of that name is awaited: whoever asks for it may wait for it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class ServedFiles:
    """Which files there are; any thread may ask, a change is a new dictionary."""

    def __init__(self, files: Iterable[ServedFile] = ()) -> None:
        self._by_node: dict[int, ServedFile] = {}
        self._by_tree: dict[int, ServedFile] = {}
        self._awaited: frozenset[str] = frozenset()
        self._lock = Lock()  # guards the replacement of the three
        for file in files:
            self.add(file)

    def add(self, file: ServedFile) -> None:
        """Serves the file; one of the same name replaces it, having the same bytes.

        Raises Conflict when it has another size, so other bytes, and when the node ids of two
        names are the same.
        """
        node, key = node_id(checked_name(file.name)), tree_key(file.name)
        with self._lock:
            for present in (self._by_node.get(node), self._by_tree.get(key)):
                if present is None:
                    continue
                if (present.name, present.size) != (file.name, file.size):
                    raise Conflict(f"{present.name} is served with {present.size} bytes already")
            self._by_node = self._by_node | {node: file}
            self._by_tree = self._by_tree | {key: file}
            self._awaited = self._awaited - {file.name}

    def await_file(self, name: str) -> None:
        """Who asks for it from now on hears that it is still to come, until it is added."""
        with self._lock:
            self._awaited = self._awaited | {name}

    def awaits(self, name: str) -> bool:
        return name in self._awaited

    def give_up(self, name: str) -> None:
        """It will not come."""
        with self._lock:
            self._awaited = self._awaited - {name}

    def remove(self, name: str) -> bool:
        """Serves it no longer; False if it was not served."""
        with self._lock:
            known = node_id(name) in self._by_node
            self._by_node = {at: file for at, file in self._by_node.items() if file.name != name}
            self._by_tree = {at: file for at, file in self._by_tree.items() if file.name != name}
            self._awaited = self._awaited - {name}
        return known

    def find(self, name: str) -> tuple[int, ServedFile] | None:
        node = node_id(name)
        file = self._by_node.get(node)
        return None if file is None or file.name != name else (node, file)

    def at(self, node: int) -> ServedFile:
        """The file of that node. Raises NotServedYet, OSError (ESTALE): the kernel may know one
        that is gone.
        """
        return self._by_node.get(node) or self._late(node, node_id, lambda: self._by_node)

    def tree(self, key: int) -> LayerTree:
        """The layer of that part of a node's id. Raises as `at`."""
        file = self._by_tree.get(key) or self._late(key, tree_key, lambda: self._by_tree)
        return LayerTree(file)

    def listed(self) -> list[tuple[int, ServedFile]]:
        """Every node and its file, in the order of node ids."""
        return sorted(self._by_node.items(), key=lambda item: item[0])

    def _late(
        self, number: int, number_of: Callable[[str], int], files: Callable[[], _Files]
    ) -> ServedFile:
        """What is awaited is looked up first: a file that is added meanwhile is found then."""
        awaited = next((name for name in self._awaited if number_of(name) == number), None)
        if (file := files().get(number)) is not None:
            return file
        if awaited is not None:
            raise NotServedYet(awaited)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
