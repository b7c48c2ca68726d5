"""A model's packed weights, as the node keeps them from one cold start to the next."""

from collections.abc import Mapping

import structlog
import torch

from worker.weights.packed_store import PackedStore

log = structlog.get_logger()


class Pack:
    """Packed weights by layer: as found in the store, or collected for it while they are made."""

    def __init__(self, store: PackedStore, key: str) -> None:
        """`key` says all that the packed weights depend on: source, formats, layout."""
        self._store = store
        self._key = key
        self._made: dict[str, torch.Tensor] = {}
        self._found: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in (store.open(key) or {}).items():
            layer, _, part = name.rpartition("/")
            self._found.setdefault(layer, {})[part] = tensor

    @property
    def found_bytes(self) -> int:
        """Bytes of the packed weights that an earlier process left; 0 where there were none."""
        return sum(part.nbytes for parts in self._found.values() for part in parts.values())

    def state(self, layer: str) -> Mapping[str, torch.Tensor] | None:
        """What `keep` was given for this layer in an earlier process."""
        return self._found.get(layer)

    def keep(self, layer: str, state: Mapping[str, torch.Tensor]) -> None:
        """Collects a layer that was packed in this process."""
        self._made.update({f"{layer}/{part}": tensor for part, tensor in state.items()})

    def save(self, *, now: float) -> None:
        """Writes what was collected, where anything was; `now` is unix seconds."""
        made, self._made = self._made, {}
        if not made:
            return
        try:
            has_room = self._store.write(self._key, made, now=now)
        except OSError as error:
            log.warning("pack.unwritten", why=str(error))
            return
        log.info("pack.written" if has_room else "pack.too_large", tensors=len(made))
