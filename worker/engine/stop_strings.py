"""Finds stop strings in a text that arrives in pieces."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A stop string with its failure function (Knuth, Morris, Pratt 1977)."""

    text: str
    fallback: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> "_Pattern":
        fallback = [0]
        for character in text[1:]:
            length = fallback[-1]
            while length and text[length] != character:
                length = fallback[length - 1]
            fallback.append(length + (text[length] == character))
        return cls(text, tuple(fallback))

    def advance(self, matched: int, character: str) -> int:
        """How much of the pattern the text ends with, one character later."""
        while matched and self.text[matched] != character:
            matched = self.fallback[matched - 1]
        return matched + (self.text[matched] == character)


class StopStrings:
    """Lets text through as soon as it cannot be part of a stop string any more.

    The first stop string to be complete ends the text, wherever the borders of the pieces are; of
    those complete at the same character, the longest. Costs a constant time a character.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.is_stopped = False
        self._patterns = tuple(_Pattern.of(stop) for stop in stops)
        self._matched = [0] * len(stops)
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> str:
        """What may be shown after `text` has arrived; sets `is_stopped` at a stop string.

        Where the text may not stop, a stop string that ends in it is text as any other.
        """
        if not self._patterns:
            return text
        held_before = len(self._held)
        self._held += text
        for offset, character in enumerate(text):
            completed = self._advance(character)
            if completed and may_stop:
                self.is_stopped = True
                shown = self._held[: held_before + offset + 1 - completed]
                self._held = ""
                return shown
        return self._show(len(self._held) - max(self._matched))

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        return self._show(len(self._held))

    def _show(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _advance(self, character: str) -> int:
        """Moves every pattern on; the length of the longest one completed, or 0."""
        completed = 0
        for index, pattern in enumerate(self._patterns):
            self._matched[index] = pattern.advance(self._matched[index], character)
            if self._matched[index] == len(pattern.text):
                completed = max(completed, len(pattern.text))
                self._matched[index] = pattern.fallback[-1]
        return completed
