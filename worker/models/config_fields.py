"""Typed access to a JSON object whose author is unknown."""

from collections.abc import Mapping
from typing import Any

from infra.errors import SourceInvalid


class Fields:
    """Every value is checked as it is read; null counts as not given."""

    def __init__(self, values: Mapping[str, Any], *, path: str = "") -> None:
        self._values = values
        self._path = path

    def integer(self, name: str, *, most: int, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self._wrong(name, f"an integer from 1 to {most}")
        return value

    def number(
        self, name: str, *, least: float, most: float, default: float | None = None
    ) -> float:
        value = self._get(name, default)
        if type(value) not in {int, float} or not least <= value <= most:
            raise self._wrong(name, f"a number from {least} to {most}")
        return float(value)

    def numbers(self, name: str, *, least: float, most: float) -> tuple[float, ...]:
        values = self._get(name, None)
        if not isinstance(values, list) or not all(
            type(value) in {int, float} and least <= value <= most for value in values
        ):
            raise self._wrong(name, f"a list of numbers from {least} to {most}")
        return tuple(map(float, values))

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._get(name, default)
        if type(value) is not bool:
            raise self._wrong(name, "true or false")
        return value

    def object(self, name: str) -> "Fields | None":
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Fields(value, path=f"{self._path}{name}.")

    def text(self, *names: str) -> str | None:
        """The first of the names that is given."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, str):
                return value
            if value is not None:
                raise self._wrong(name, "a text")
        return None

    def texts(self, name: str) -> list[str] | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of texts")
        return value

    def is_null(self, name: str) -> bool:
        """Says null, where others say nothing."""
        return name in self._values and self._values[name] is None

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is None and default is None:
            raise SourceInvalid(f"config.json lacks {self._path}{name}")
        return default if value is None else value

    def _wrong(self, name: str, expected: str) -> SourceInvalid:
        return SourceInvalid(f"config.json: {self._path}{name} is not {expected}")
