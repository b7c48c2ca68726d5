"""What a snapshotter of containerd does: layers are mounted where they can be, else unpacked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Final

import structlog

from infra.clock import Clock
from infra.containerd.labels import ENTRYPOINT, READ, READY
from infra.errors import Conflict, PlatformError
from snapshotter.containerd.filters import parse_filters
from snapshotter.containerd.folders import Folders
from snapshotter.containerd.layers import ContainerStart, FoundLayer, Layers, WantedLayer
from snapshotter.containerd.mounts import Mount, mount_of
from snapshotter.containerd.snapshot import Kind, Reason, Refused, Snapshot, Usage, masked
from snapshotter.containerd.store import SnapshotStore

log = structlog.get_logger()

TARGET: Final = "containerd.io/snapshot.ref"  # the name that an unpacked layer will be committed as
_NS = 1_000_000_000


class Snapshotter:
    """Any thread may call; raises Refused as containerd's own snapshotters do."""

    def __init__(
        self, store: SnapshotStore, folders: Folders, layers: Layers, *, clock: Clock
    ) -> None:
        self._store = store
        self._folders = folders
        self._layers = layers
        self._clock = clock
        # Guards that a layer is mounted exactly while a row refers to it.
        self._mounting = Lock()

    def mount_layers(self) -> None:
        """Mounts every layer that a snapshot needs, and no other; may be repeated.

        One that cannot be mounted now is logged, and tried again when its files are asked for.
        """
        for snapshot in self._store.all():
            try:
                self._mount_again(snapshot)
            except PlatformError as error:
                log.error("layer.not_mounted", layer=snapshot.layer, error=error.detail)
        with self._mounting:
            self._drop_unused_layers()

    def has_layers(self) -> bool:
        """Whether anything is to stay mounted."""
        return any(snapshot.layer is not None for snapshot in self._store.all())

    def clean_up_after_crash(self) -> None:
        """Removes folders of no snapshot, half-made ones too; only before the first call."""
        self._remove_strangers(is_alone=True)

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        """A writable snapshot.

        Refused as existing when the layer that would be unpacked into it is there already, or is
        mounted by this very call: containerd then takes the one named by TARGET.
        """
        target = labels.get(TARGET)
        if target is not None and self._is_there(target, parent, labels):
            raise Refused(Reason.ALREADY_EXISTS, f"target snapshot {target!r}")
        mount = self._create(key, Kind.ACTIVE, parent, labels)
        if target is None and (start := self._start_of(key, parent, labels)) is not None:
            self._layers.starting(start)
        return mount

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        """A read-only look at a committed snapshot."""
        return self._create(key, Kind.VIEW, parent, labels)

    def mounts(self, key: str) -> Mount:
        """Of an active snapshot or a view."""
        snapshot = self._store.get(key)
        if snapshot.kind is Kind.COMMITTED:
            detail = f"requested snapshot {key} not active or view"
            raise Refused(Reason.FAILED_PRECONDITION, detail)
        return self._mount_of(snapshot)

    def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """What was written becomes a snapshot that others can stand on."""
        usage = self._folders.usage(self._store.get(key).id)
        self._store.commit(key, name, labels=labels, usage=usage, now_ns=self._now_ns())

    def remove(self, name: str) -> None:
        """Forgets a snapshot; the layer that nobody needs any more is unmounted."""
        if self._store.get(name).layer is None:
            self._folders.remove(self._store.remove(name).id)
            return
        with self._mounting:
            snapshot = self._store.remove(name)
            self._folders.remove(snapshot.id)
            self._drop_unused_layers()

    def stat(self, name: str) -> Snapshot:
        """While a container starts of which is known what it runs, with what it has read."""
        snapshot = self._store.get(name)
        labels = snapshot.labels
        if ENTRYPOINT not in labels or READY in labels:
            return snapshot
        start = self._start_of(name, snapshot.parent, labels)
        read = None if start is None else self._layers.read(start)
        if read is None:
            return snapshot
        return replace(snapshot, labels={**labels, READ: read.model_dump_json()})

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        """Labels by a field mask; nothing else of a snapshot can change.

        One that is new may say that what a container runs is ready.
        """
        before = self._store.get(name)
        changed = masked(before.labels, labels, paths, name=name)
        after = self._store.relabel(name, changed, now_ns=self._now_ns())
        if READY in changed and READY not in before.labels and ENTRYPOINT in before.labels:
            start = self._start_of(name, before.parent, before.labels)
            if start is not None:
                self._layers.ready(start)
        return after

    def walk(self, filters: Sequence[str]) -> list[Snapshot]:
        """All that match one of the filters."""
        matches = parse_filters(filters)
        return [snapshot for snapshot in self._store.all() if matches(snapshot)]

    def usage(self, name: str) -> Usage:
        """What it takes itself, without its parents."""
        snapshot = self._store.get(name)
        if snapshot.layer is not None:
            return Usage(self._layers.kept_bytes(snapshot.layer), 1)
        if snapshot.kind is Kind.ACTIVE:
            return self._folders.usage(snapshot.id)
        return snapshot.usage

    def cleanup(self) -> None:
        """Removes what belongs to no snapshot: folders, and layers that could not be unmounted."""
        with self._mounting:
            self._drop_unused_layers()
        self._remove_strangers(is_alone=False)

    def _start_of(self, key: str, parent: str, labels: Mapping[str, str]) -> ContainerStart | None:
        """What is not unpacked into is a container's; the image is that of its highest layer."""
        mounted = [it for it in self._store.chain(parent) if it.layer is not None]
        highest = WantedLayer.of(mounted[0].labels) if mounted else None
        if highest is None:
            return None
        names = tuple(it.layer for it in reversed(mounted) if it.layer is not None)
        return ContainerStart(key, str(highest.image), names, labels.get(ENTRYPOINT))

    def _is_there(self, target: str, parent: str, labels: Mapping[str, str]) -> bool:
        existing = self._store.find(target)
        if existing is not None:
            return existing.kind is Kind.COMMITTED and existing.parent == parent
        wanted = WantedLayer.of(labels)
        if wanted is None:
            return False
        self._find_parent(parent)
        try:
            found = self._found(wanted)
            if found is None:
                log.info("snapshot.unpacked", layer=wanted.layer, reason="it has no index")
                return False
            self._mount_as(target, parent, labels, wanted, found)
        except PlatformError as error:
            log.warning("snapshot.unpacked", layer=wanted.layer, reason=error.detail)
            return False
        log.info("snapshot.mounted", layer=wanted.layer, image=wanted.reference, pin=wanted.index)
        return True

    def _found(self, wanted: WantedLayer) -> FoundLayer | None:
        """What is here was found by any index: whose index is pinned has that one looked up."""
        if wanted.index is not None:
            return self._layers.find(wanted)
        return self._store.layer_of(wanted.layer) or self._layers.find(wanted)

    def _mount_as(
        self,
        target: str,
        parent: str,
        labels: Mapping[str, str],
        wanted: WantedLayer,
        found: FoundLayer,
    ) -> None:
        with self._mounting:
            there = self._store.layer_of(wanted.layer)
            if there is not None and there.name != found.name:
                raise Conflict(f"it is mounted by another index, {there.name}")
            self._store.keep_layer(wanted.layer, found)
            try:
                folder = self._layers.mount(found)
                self._store.create(
                    target,
                    Kind.COMMITTED,
                    parent=parent,
                    labels=labels,
                    now_ns=self._now_ns(),
                    furnish=lambda snapshot_id: self._folders.link(snapshot_id, folder),
                    layer=found.name,
                )
            except Refused as refused:
                if refused.reason is not Reason.ALREADY_EXISTS:  # made by a call beside this one
                    raise
            finally:
                self._drop_unused_layers()

    def _create(self, key: str, kind: Kind, parent: str, labels: Mapping[str, str]) -> Mount:
        below = self._find_parent(parent)
        made = self._folders.make(kind, parent=None if below is None else below.id)
        try:
            snapshot = self._store.create(
                key,
                kind,
                parent=parent,
                labels=labels,
                now_ns=self._now_ns(),
                furnish=lambda snapshot_id: self._folders.give(made, snapshot_id),
            )
        finally:
            self._folders.discard(made)
        return self._mount_of(snapshot)

    def _find_parent(self, parent: str) -> Snapshot | None:
        """Refuses one that nothing can stand on; its layers and those below it are mounted."""
        if not parent:
            return None
        snapshot = self._store.get(parent)
        if snapshot.kind is not Kind.COMMITTED:
            raise Refused(Reason.INVALID_ARGUMENT, f"parent {parent!r} is not committed snapshot")
        for below in self._store.chain(parent):
            self._mount_again(below)
        return snapshot

    def _mount_of(self, snapshot: Snapshot) -> Mount:
        chain = self._store.chain(snapshot.name)
        for below in chain:
            self._mount_again(below)
        return mount_of(
            snapshot.kind,
            files=self._folders.files(snapshot.id),
            work=self._folders.work(snapshot.id),
            below=[self._folders.files(it.id) for it in chain[1:]],
        )

    def _mount_again(self, snapshot: Snapshot) -> None:
        """Its layer, where it has one; costs little where it is mounted."""
        if snapshot.layer is None:
            return
        with self._mounting:
            folder = self._layers.mount(self._store.layer(snapshot.layer))
            self._folders.link(snapshot.id, folder)

    def _drop_unused_layers(self) -> None:
        for name in self._store.unused_layers():
            try:
                self._layers.unmount(name)
            except PlatformError as error:
                log.error("layer.not_unmounted", layer=name, error=error.detail)
            else:
                self._store.forget_layer(name)
                log.info("layer.unmounted", layer=name)

    def _remove_strangers(self, *, is_alone: bool) -> None:
        with self._store.ids() as known:
            for folder in self._folders.strangers(known):
                if is_alone or not self._folders.is_being_made(folder):
                    log.info("folder.removed", folder=folder.name)
                    self._folders.discard(folder)

    def _now_ns(self) -> int:
        return int(self._clock.now() * _NS)
