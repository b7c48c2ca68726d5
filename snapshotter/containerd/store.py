"""The snapshots of this node in SQLite: what containerd was told survives a restart."""

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Final

from infra.errors import Conflict
from snapshotter.containerd.layers import FoundLayer
from snapshotter.containerd.snapshot import Kind, Reason, Refused, Snapshot, Usage, kept_labels

_VERSION: Final = 1
_SCHEMA: Final = """
create table layers (
  name text primary key,
  digest text not null,     -- of the layer in its registry
  spec text not null        -- JSON: what the file system needs to mount it again
) strict;
create index digests on layers (digest);
create table snapshots (
  id integer primary key autoincrement,  -- never used twice: it names a folder
  name text not null unique,
  parent integer references snapshots (id),
  kind text not null,
  created_ns integer not null,
  updated_ns integer not null,
  labels text not null,     -- JSON
  layer text references layers (name),
  size_bytes integer not null default 0,
  inodes integer not null default 0
) strict;
create index children on snapshots (parent);
create index users on snapshots (layer);
"""
_COLUMNS: Final = """
select s.id, s.name, coalesce(p.name, '') as parent, s.kind, s.created_ns, s.updated_ns, s.labels,
  s.layer, s.size_bytes, s.inodes
"""
_SELECT: Final = f"{_COLUMNS} from snapshots s left join snapshots p on p.id = s.parent"
_CHAIN: Final = f"""
with recursive chain (id, depth) as (
  select id, 0 from snapshots where name = ?
  union all
  select s.parent, depth + 1 from snapshots s join chain on s.id = chain.id
  where s.parent is not null
)
{_COLUMNS} from chain join snapshots s on s.id = chain.id
  left join snapshots p on p.id = s.parent
order by depth
"""


class SnapshotStore:
    """One file; each method is one transaction, on disk when it returns. Any thread may call.

    Raises Refused as containerd's own snapshotters do.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes it. Raises Conflict for a file of another version."""
        self._lock = RLock()  # guards the connection
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.row_factory = sqlite3.Row
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("pragma synchronous = full")
        self._database.execute("pragma foreign_keys = on")
        version: int = self._database.execute("pragma user_version").fetchone()[0]
        if version == 0:
            script = f"begin; {_SCHEMA} pragma user_version = {_VERSION}; commit;"
            self._database.executescript(script)
        elif version != _VERSION:
            self._database.close()
            raise Conflict(
                f"{path} is of version {version}, this program's is {_VERSION}",
                hint="run the snapshotter that made it, or see docs/images.md on starting over",
            )

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def get(self, name: str) -> Snapshot:
        found = self.find(name)
        if found is None:
            raise Refused(Reason.NOT_FOUND, f"snapshot {name!r} does not exist")
        return found

    def find(self, name: str) -> Snapshot | None:
        with self._lock:
            row = self._database.execute(f"{_SELECT} where s.name = ?", (name,)).fetchone()
        return None if row is None else _snapshot(row)

    def all(self) -> list[Snapshot]:
        """By name, as containerd's own snapshotters list them."""
        with self._lock:
            rows = self._database.execute(f"{_SELECT} order by s.name").fetchall()
        return [_snapshot(row) for row in rows]

    def chain(self, name: str) -> list[Snapshot]:
        """A snapshot and all below it, itself first."""
        with self._lock:
            return [_snapshot(row) for row in self._database.execute(_CHAIN, (name,))]

    def create(
        self,
        name: str,
        kind: Kind,
        *,
        parent: str,
        labels: Mapping[str, str],
        now_ns: int,
        furnish: Callable[[int], None],
        layer: str | None = None,
    ) -> Snapshot:
        """A new snapshot on a committed one, or on nothing.

        There is none before `furnish`, which is given its id, has made its folder.
        """
        with self._transaction():
            below = self._committed(parent) if parent else None
            if self.find(name) is not None:
                raise Refused(Reason.ALREADY_EXISTS, f"snapshot {name}")
            self._database.execute(
                "insert into snapshots (name, parent, kind, created_ns, updated_ns, labels, layer)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    None if below is None else below.id,
                    kind.value,
                    now_ns,
                    now_ns,
                    json.dumps(kept_labels(labels)),
                    layer,
                ),
            )
            snapshot = self.get(name)
            furnish(snapshot.id)
            return snapshot

    def commit(
        self, key: str, name: str, *, labels: Mapping[str, str], usage: Usage, now_ns: int
    ) -> None:
        """An active snapshot becomes a committed one of another name; its labels are replaced."""
        with self._transaction():
            snapshot = self.get(key)
            if self.find(name) is not None:
                raise Refused(Reason.ALREADY_EXISTS, f"committed snapshot {name}")
            if snapshot.kind is not Kind.ACTIVE:
                raise Refused(Reason.FAILED_PRECONDITION, f"snapshot {key!r} is not active")
            self._database.execute(
                "update snapshots set name = ?, kind = ?, created_ns = ?, updated_ns = ?,"
                " labels = ?, size_bytes = ?, inodes = ? where id = ?",
                (
                    name,
                    Kind.COMMITTED.value,
                    now_ns,
                    now_ns,
                    json.dumps(kept_labels(labels)),
                    usage.size_bytes,
                    usage.inodes,
                    snapshot.id,
                ),
            )

    def remove(self, name: str) -> Snapshot:
        """Forgets one that nothing stands on; it is returned."""
        with self._transaction():
            snapshot = self.get(name)
            children = "select 1 from snapshots where parent = ?"
            if self._database.execute(children, (snapshot.id,)).fetchone() is not None:
                raise Refused(Reason.FAILED_PRECONDITION, "cannot remove snapshot with child")
            self._database.execute("delete from snapshots where id = ?", (snapshot.id,))
            return snapshot

    def relabel(self, name: str, labels: Mapping[str, str], *, now_ns: int) -> Snapshot:
        with self._transaction():
            self._database.execute(
                "update snapshots set labels = ?, updated_ns = ? where name = ?",
                (json.dumps(kept_labels(labels)), now_ns, name),
            )
            return self.get(name)

    def keep_layer(self, digest: str, layer: FoundLayer) -> None:
        """Remembers how a layer is mounted; before a snapshot refers to it."""
        with self._transaction():
            self._database.execute(
                "insert or ignore into layers (name, digest, spec) values (?, ?, ?)",
                (layer.name, digest, json.dumps(layer.spec)),
            )

    def layer(self, name: str) -> FoundLayer:
        """One that a snapshot refers to."""
        query = "select name, spec from layers where name = ?"
        with self._lock:
            return _layer(self._database.execute(query, (name,)).fetchone())

    def layer_of(self, digest: str) -> FoundLayer | None:
        """The layer of that digest, if one is here already."""
        query = "select name, spec from layers where digest = ? order by name limit 1"
        with self._lock:
            row = self._database.execute(query, (digest,)).fetchone()
        return None if row is None else _layer(row)

    def layers(self) -> list[str]:
        """Names of all that are here."""
        with self._lock:
            return [row["name"] for row in self._database.execute("select name from layers")]

    def unused_layers(self) -> list[str]:
        """Names of those that no snapshot refers to any more."""
        query = (
            "select name from layers"
            " where not exists (select 1 from snapshots where layer = layers.name)"
        )
        with self._lock:
            return [row["name"] for row in self._database.execute(query)]

    def forget_layer(self, name: str) -> None:
        with self._transaction():
            self._database.execute("delete from layers where name = ?", (name,))

    @contextmanager
    def ids(self) -> Iterator[set[int]]:
        """Of all snapshots; meanwhile none is made or removed."""
        with self._transaction():
            yield {row["id"] for row in self._database.execute("select id from snapshots")}

    def _committed(self, name: str) -> Snapshot:
        parent = self.get(name)
        if parent.kind is not Kind.COMMITTED:
            raise Refused(Reason.INVALID_ARGUMENT, f"parent {name!r} is not committed snapshot")
        return parent

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")


def _snapshot(row: sqlite3.Row) -> Snapshot:
    return Snapshot(
        id=row["id"],
        name=row["name"],
        parent=row["parent"],
        kind=Kind(row["kind"]),
        created_ns=row["created_ns"],
        updated_ns=row["updated_ns"],
        labels=json.loads(row["labels"]),
        layer=row["layer"],
        usage=Usage(row["size_bytes"], row["inodes"]),
    )


def _layer(row: sqlite3.Row) -> FoundLayer:
    return FoundLayer(row["name"], json.loads(row["spec"]))
