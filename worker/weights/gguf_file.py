"""A GGUF file whose header was checked: typed access to what it says of itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from infra.errors import SourceInvalid

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor's place in the file."""

    name: str
    shape: tuple[int, ...]  # slowest dimension first, as torch has it
    encoding: GGMLQuantizationType
    offset: int  # bytes from the start of the file
    size: int  # bytes

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])


@dataclass(frozen=True)
class GgufFile:
    """A checked GGUF file: what it says of itself, and where its tensors lie."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    def packed_rows(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """The tensor as stored, mapped and not read: [rows, bytes a row]."""
        flat = np.memmap(
            self.path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(tensor.size,)
        )
        return flat.reshape(tensor.rows, -1)

    def text(self, key: str, default: str | None = None) -> str:
        """A string of the metadata; raises SourceInvalid when it is missing or something else."""
        return self._typed(key, default, "a string", lambda value: isinstance(value, str))

    def flag(self, key: str, default: bool) -> bool:
        """A boolean of the metadata."""
        return self._typed(key, default, "a boolean", lambda value: isinstance(value, bool))

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        """A finite number greater than `above`, as the shortest decimal of its 32-bit float."""
        value = self._typed(
            key,
            default,
            f"a number greater than {above:g}",
            lambda value: isinstance(value, int | float) and above < value < float("inf"),
        )
        return float(str(np.float32(value)))

    def integer(
        self, key: str, default: int | None = None, *, low: int = 1, high: int = 1 << 31
    ) -> int:
        """An integer in [low, high]."""
        return self._typed(
            key,
            default,
            f"an integer from {low} to {high}",
            lambda value: (
                isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            ),
        )

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings."""
        return self._typed(
            key,
            None,
            "an array of strings",
            lambda value: isinstance(value, tuple) and all(isinstance(item, str) for item in value),
        )

    def _typed(
        self, key: str, default: T | None, expected: str, fits: Callable[[Value], bool]
    ) -> T:
        value = self.metadata.get(key)
        if value is None:
            if default is None:
                raise SourceInvalid(f"{self.path.name}: {key} is missing", key=key)
            return default
        if not fits(value):
            raise SourceInvalid(f"{self.path.name}: {key} is not {expected}", key=key)
        return value  # type: ignore[return-value] # fits() has checked it
