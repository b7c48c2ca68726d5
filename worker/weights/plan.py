"""Which bytes of which file each of a model's tensors is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infra.errors import SourceInvalid, UnsupportedModel
from infra.json_file import read_json_object
from worker.weights.header import TensorEntry, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MOST_INDEX_BYTES = 64 << 20
MOST_SHARDS = 4096


@dataclass(frozen=True, slots=True)
class Shard:
    """One file with the tensors that are wanted of it, in the order of their bytes."""

    path: Path
    size: int
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """All files of a model; a tensor's name appears once."""

    shards: tuple[Shard, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of the files together."""
        return sum(shard.size for shard in self.shards)


# A file's size and what its header says; raises SourceInvalid.
ReadShard = Callable[[Path], tuple[int, tuple[TensorEntry, ...]]]


def read_file(path: Path) -> tuple[int, tuple[TensorEntry, ...]]:
    """The ReadShard of files that are here."""
    entries = read_header(path)
    return path.stat().st_size, entries


def plan_weights(
    model_dir: Path, read: ReadShard = read_file, *, expected: frozenset[str] = frozenset()
) -> WeightPlan:
    """Reads headers and index of a model in safetensors, sharded or not.

    The files named in `expected` are still on their way. Raises SourceInvalid when files are
    missing or contradict each other, UnsupportedModel when the weights are in another format.
    """
    if SINGLE_FILE in expected or (model_dir / SINGLE_FILE).exists():
        return WeightPlan((_shard(model_dir / SINGLE_FILE, None, read),))
    if (model_dir / INDEX_FILE).exists():
        return _plan_shards(model_dir, read)
    others = sorted(
        path.name for path in model_dir.glob("*") if path.suffix in {".bin", ".pt", ".pth", ".gguf"}
    )
    if others:
        raise UnsupportedModel(
            f"the weights are in {others[0]}, not in safetensors",
            hint="convert them: pickled weights are never loaded",
        )
    raise SourceInvalid(f"{SINGLE_FILE} is missing")


def _plan_shards(model_dir: Path, read: ReadShard) -> WeightPlan:
    index = read_json_object(model_dir / INDEX_FILE, most_bytes=MOST_INDEX_BYTES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceInvalid(f"{INDEX_FILE} has no weight_map")
    names_by_file: dict[str, set[str]] = {}
    for name, filename in weight_map.items():
        if not isinstance(filename, str) or not _is_plain_filename(filename):
            raise SourceInvalid(f"{INDEX_FILE} places {name!r} in an impossible file")
        names_by_file.setdefault(filename, set()).add(name)
    if len(names_by_file) > MOST_SHARDS:
        raise SourceInvalid(f"{INDEX_FILE} names {len(names_by_file)} files")
    return WeightPlan(
        tuple(
            _shard(model_dir / filename, names, read)
            for filename, names in sorted(names_by_file.items())
        )
    )


def _shard(path: Path, wanted: set[str] | None, read: ReadShard) -> Shard:
    size, entries = read(path)
    if wanted is not None:
        missing = wanted - {entry.name for entry in entries}
        if missing:
            raise SourceInvalid(f"{path.name} does not hold {min(missing)!r}")
        entries = tuple(entry for entry in entries if entry.name in wanted)
    return Shard(path, size, entries)


def _is_plain_filename(name: str) -> bool:
    return name.endswith(".safetensors") and Path(name).name == name and "\0" not in name
