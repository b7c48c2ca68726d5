"""Weights as tensors over mapped files: nothing is copied, and nothing is read twice."""

import mmap
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from infra.errors import SourceInvalid, UnsupportedModel
from infra.paging import HUGE, POPULATE_READ, advise, steps
from infra.sources.landing import Landing
from infra.sources.port import WeightStream
from worker.weights.header import LENGTH_BYTES, TensorEntry, header_bytes, parse_header
from worker.weights.plan import Shard, plan_weights, read_file

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
_MAP_THREADS = 4  # that read what is not in the page cache: as many as a disk likes


class FileBytes(Protocol):
    """The bytes of one file."""

    def part(self, start: int, stop: int) -> torch.Tensor:
        """[stop - start] uint8, not a copy; waits for bytes that are still on their way."""
        ...


class Weights:
    """A model's tensors by name. The files stay mapped as long as any of their tensors lives."""

    def __init__(self, tensors: dict[str, tuple[TensorEntry, FileBytes]], total_bytes: int):
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
    model_dir: Path,
    on_progress: Callable[[float], None],
    *,
    reads_ahead: bool = True,
    stream: WeightStream | None = None,
    spare: Landing | None = None,
) -> Weights:
    """Maps the model's weights; `on_progress` gets the fraction of bytes mapped so far.

    Pages that are in the page cache are mapped without a copy (270 MB in 3 ms); the others are
    read here, in order, rather than fault by fault in the first forward pass. With `reads_ahead`
    False they are left to be read when they are used, of which a model whose packed weights were
    kept does little. Files of a `stream` are taken from it as they come: this returns when their
    headers are there, and a tensor is waited for when it is asked for. The pages of what is read
    here take the place of a `spare` that was touched before. Raises as `plan_weights` does.
    """
    expected = frozenset() if stream is None else stream.names

    def read(path: Path) -> tuple[int, tuple[TensorEntry, ...]]:
        if stream is not None and path.name in expected:
            return _streamed_header(stream, path.name)
        return read_file(path)

    plan = plan_weights(model_dir, read, expected=expected)
    tensors: dict[str, tuple[TensorEntry, FileBytes]] = {}
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        on_progress(done / plan.total_bytes)

    for shard in plan.shards:
        if stream is not None and shard.path.name in expected:
            file: FileBytes = _Streamed(stream, shard.path.name)
        else:
            file = _Mapped(_map(shard, advance if reads_ahead else None, spare))
        tensors.update({entry.name: (entry, file) for entry in shard.tensors})
    return Weights(tensors, plan.total_bytes)


def map_file(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of one file, as views of it. Raises as `read_header` does."""
    size, entries = read_file(path)
    file = _Mapped(_map(Shard(path, size, entries), lambda size: None))
    return {entry.name: _view(entry, file, (FLOATS | INTEGERS)[entry.dtype]) for entry in entries}


class _Mapped:
    """A file that is here, all of it."""

    def __init__(self, file: torch.Tensor) -> None:
        self._file = file

    def part(self, start: int, stop: int) -> torch.Tensor:
        return self._file[start:stop]


class _Streamed:
    """A file that is on its way into memory."""

    def __init__(self, stream: WeightStream, name: str) -> None:
        self._stream = stream
        self._name = name
        self._file = _as_tensor(stream.memory(name))

    def part(self, start: int, stop: int) -> torch.Tensor:
        self._stream.wait(self._name, start, stop)
        return self._file[start:stop]


def _streamed_header(stream: WeightStream, name: str) -> tuple[int, tuple[TensorEntry, ...]]:
    """As `read_header`, of the file's first bytes; they are all that is waited for."""
    memory = stream.memory(name)
    size = len(memory)
    stream.wait(name, 0, min(LENGTH_BYTES, size))
    length = header_bytes(bytes(memory[:LENGTH_BYTES]), file_bytes=size, name=name)
    end = LENGTH_BYTES + length
    stream.wait(name, 0, end)
    text = bytes(memory[LENGTH_BYTES:end])
    return size, parse_header(text, data_bytes=size - end, name=name)


def _view(entry: TensorEntry, file: FileBytes, stored: torch.dtype) -> torch.Tensor:
    data = file.part(entry.start, entry.stop)
    if entry.start % stored.itemsize:
        data = data.clone()  # a view needs the item's alignment
    return data.view(stored).view(entry.shape)


def _map(
    shard: Shard, advance: Callable[[int], None] | None, spare: Landing | None = None
) -> torch.Tensor:
    """The whole file as bytes, private to this process; read now where `advance` is given."""
    try:
        with shard.path.open("rb") as file:
            view = mmap.mmap(file.fileno(), shard.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:  # ValueError: it became shorter since it was checked
        raise SourceInvalid(f"{shard.path.name} cannot be mapped: {error}") from error
    file_bytes = _as_tensor(view)
    if advance is not None:
        _read_ahead(file_bytes.data_ptr(), shard.size, advance, spare)
    return file_bytes


def _read_ahead(
    address: int, size: int, advance: Callable[[int], None], spare: Landing | None
) -> None:
    """Has every page in memory; `advance` hears of bytes in the order of the file.

    In huge pages where the file system has them, which are read faster in every step.
    """
    advise(address, size, HUGE)

    def populate(step: tuple[int, int]) -> int:
        start, length = step
        if spare is not None:
            spare.give_back(length)
        if not advise(address + start, length, POPULATE_READ):
            advise(address + start, length, mmap.MADV_WILLNEED)  # an older kernel: faulted in later
        return length

    if size <= _MAP_STEP_BYTES:
        advance(populate((0, size)))
        return
    with ThreadPoolExecutor(_MAP_THREADS, "read-ahead") as threads:
        for length in threads.map(populate, steps(size, _MAP_STEP_BYTES)):
            advance(length)


def _as_tensor(memory: mmap.mmap | memoryview) -> torch.Tensor:
    with warnings.catch_warnings():  # torch has no read-only tensors; nobody writes to weights
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(memory, dtype=torch.uint8)
