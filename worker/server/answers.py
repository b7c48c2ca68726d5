"""The choices of a whole answer, kept in pieces until all of them are there."""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from worker.engine.request import FinishReason, Output

Entries = TypeVar("Entries")


@dataclass(slots=True)
class Choice(Generic[Entries]):
    """One choice; `entries` are its log-probabilities, already written."""

    texts: list[str] = field(default_factory=list)
    entries: list[Entries] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, output: Output) -> None:
        """Keeps the text and the reason to stop."""
        self.texts.append(output.text)
        self.finish_reason = output.finish_reason
