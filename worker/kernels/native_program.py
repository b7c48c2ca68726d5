"""A model's layers as one native call: their operations are noted while they are done once."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from worker.kernels.port import AttentionStep, Layers

Arguments = tuple[torch.Tensor | float | None, ...]

_NOTHING = -1


class Recording:
    """A native program of the operations so far (native/program.h)."""

    def __init__(self, x: torch.Tensor, ropes: Sequence[torch.Tensor]) -> None:
        self.program: Any = torch.classes.firstlight.Program()
        self._ropes = [id(rope) for rope in ropes]
        # Weak: a long prompt's states would take gigabytes if all were kept to the end.
        self._numbers = WeakTensorKeyDictionary({x: 0})
        self._last = 0

    def linear(
        self,
        x: torch.Tensor,
        arguments: Arguments,
        residual: torch.Tensor | None,
        result: torch.Tensor,
    ) -> None:
        self._add(self.program.linear(self._number(x), *arguments, self._number(residual)), result)

    def rms_norm(
        self,
        x: torch.Tensor,
        arguments: Arguments,
        residual: torch.Tensor | None,
        result: torch.Tensor,
    ) -> None:
        number = self.program.rms_norm(self._number(x), *arguments, self._number(residual))
        self._add(number, result)

    def attend(
        self,
        x: torch.Tensor,
        layer: int,
        rope: torch.Tensor,
        arguments: Arguments,
        result: torch.Tensor,
    ) -> None:
        rope_number = self._ropes.index(id(rope))
        self._add(self.program.attend(self._number(x), layer, rope_number, *arguments), result)

    def ends_with(self, result: torch.Tensor) -> bool:
        return self._number(result) == self._last

    def _add(self, number: int, result: torch.Tensor) -> None:
        self._numbers[result] = self._last = number

    def _number(self, tensor: torch.Tensor | None) -> int:
        """Raises KeyError for what no noted operation made."""
        return _NOTHING if tensor is None else int(self._numbers[tensor])


class Tape:
    """Where the operations of one model's kernels are noted, while somebody records."""

    def __init__(self) -> None:
        self.recording: Recording | None = None


class NativeStep(Protocol):
    """An AttentionStep over the native KV cache."""

    def run(self, program: Any, x: torch.Tensor, ropes: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the program of a model's layers makes of the step's tokens."""
        ...


class NativeLayers:
    """See Layers: recorded when they are first computed, one native call from then on."""

    def __init__(self, layers: Layers, tape: Tape) -> None:
        self._layers = layers
        self._tape = tape
        self._program: Any = None

    def __call__(
        self, x: torch.Tensor, step: AttentionStep, ropes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if self._program is None:
            return self._record(x, step, ropes)
        return cast(NativeStep, step).run(self._program, x, ropes)

    def _record(
        self, x: torch.Tensor, step: AttentionStep, ropes: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        recording = Recording(x, ropes)
        self._tape.recording = recording
        try:
            result = self._layers(x, step, ropes)
        finally:
            self._tape.recording = None
        assert recording.ends_with(result), "the last operation's result is the layers'"
        self._program = recording.program
        return result
