"""Weights as tensors over mapped files: nothing is copied, and nothing is read twice."""

import mmap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from infra.errors import SourceInvalid, UnsupportedModel
from worker.weights.header import TensorEntry, read_header
from worker.weights.plan import Shard, plan_weights

FLOATS = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}
INTEGERS = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
_MAP_STEP_BYTES = 64 << 20
_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module has no name for it yet


class Weights:
    """A model's tensors by name. The files stay mapped as long as any of their tensors lives."""

    def __init__(self, tensors: dict[str, tuple[TensorEntry, torch.Tensor]], total_bytes: int):
        self._tensors = tensors
        self.total_bytes = total_bytes

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def format(self, name: str) -> str | None:
        """The tensor's number format as safetensors calls it; None where there is no tensor."""
        found = self._tensors.get(name)
        return None if found is None else found[0].dtype

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The tensor, without a copy where the file has it in `dtype` already.

        Raises SourceInvalid when it is missing or has another shape, UnsupportedModel when it
        holds no floating-point numbers.
        """
        return self._find(name, shape, FLOATS).to(dtype)

    def part(
        self,
        name: str,
        shape: tuple[int, int],
        rows: Sequence[range],
        columns: range,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Some rows and columns of a tensor of that shape; nothing else of it is read.

        Raises as `take`.
        """
        stored = self._find(name, shape, FLOATS)[:, columns.start : columns.stop]
        pieces = [stored[each.start : each.stop] for each in rows]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(dtype).contiguous()

    def take_integers(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """As `take`, of whole numbers in whichever format the file has them."""
        return self._find(name, shape, INTEGERS)

    def _find(
        self, name: str, shape: tuple[int, ...], formats: dict[str, torch.dtype]
    ) -> torch.Tensor:
        if name not in self._tensors:
            raise SourceInvalid(f"the weights have no tensor {name!r}")
        entry, file = self._tensors[name]
        if entry.shape != shape:
            raise SourceInvalid(
                f"{name!r} has shape {list(entry.shape)}, where config.json asks for {list(shape)}"
            )
        if entry.dtype not in formats:
            raise UnsupportedModel(f"{name!r} is stored as {entry.dtype}")
        return _view(entry, file, formats[entry.dtype])


def open_weights(
    model_dir: Path, on_progress: Callable[[float], None], *, reads_ahead: bool = True
) -> Weights:
    """Maps the model's weights; `on_progress` gets the fraction of bytes mapped so far.

    Pages that are in the page cache are mapped without a copy (270 MB in 3 ms); the others are
    read here, in order, rather than fault by fault in the first forward pass. With `reads_ahead`
    False they are left to be read when they are used, of which a model whose packed weights were
    kept does little. Raises as `plan_weights` does.
    """
    plan = plan_weights(model_dir)
    tensors: dict[str, tuple[TensorEntry, torch.Tensor]] = {}
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        on_progress(done / plan.total_bytes)

    for shard in plan.shards:
        file = _map(shard, advance if reads_ahead else None)
        tensors.update({entry.name: (entry, file) for entry in shard.tensors})
    return Weights(tensors, plan.total_bytes)


def map_file(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of one file, as views of it. Raises as `read_header` does."""
    entries = read_header(path)
    file = _map(Shard(path, path.stat().st_size, entries), lambda size: None)
    return {entry.name: _view(entry, file, (FLOATS | INTEGERS)[entry.dtype]) for entry in entries}


def _view(entry: TensorEntry, file: torch.Tensor, stored: torch.dtype) -> torch.Tensor:
    data = file[entry.start : entry.start + entry.size]
    if entry.start % stored.itemsize:
        data = data.clone()  # a view needs the item's alignment
    return data.view(stored).view(entry.shape)


def _map(shard: Shard, advance: Callable[[int], None] | None) -> torch.Tensor:
    """The whole file as bytes, private to this process; read now where `advance` is given."""
    try:
        with shard.path.open("rb") as file:
            view = mmap.mmap(file.fileno(), shard.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:  # ValueError: it became shorter since it was checked
        raise SourceInvalid(f"{shard.path.name} cannot be mapped: {error}") from error
    if advance is not None:
        for start in range(0, shard.size, _MAP_STEP_BYTES):
            size = min(_MAP_STEP_BYTES, shard.size - start)
            _populate(view, start, size)
            advance(size)
    with warnings.catch_warnings():  # torch has no read-only tensors; nobody writes to weights
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(view, dtype=torch.uint8)


def _populate(view: mmap.mmap, start: int, size: int) -> None:
    try:
        view.madvise(_MADV_POPULATE_READ, start, size)
    except OSError:
        view.madvise(mmap.MADV_WILLNEED, start, size)  # an older kernel faults the pages in later
