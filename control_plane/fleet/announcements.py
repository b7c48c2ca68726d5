"""Tells listeners of changes in the order in which these were made, whoever makes further ones."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger()


class Announcements:
    """What was not told yet; it is told before the outermost change returns."""

    def __init__(self) -> None:
        self._untold: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._is_telling = False

    def add(self, listener: Callable[..., None], *news: object) -> None:
        """To be told after all that was added before."""
        self._untold.append((listener, news))

    def tell(self) -> None:
        """Tells everything, unless somebody further out will."""
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while self._untold:
                listener, news = self._untold.popleft()
                _call(listener, news)
        finally:
            self._is_telling = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Tells what is added inside only when all of it has happened."""
        was_telling, self._is_telling = self._is_telling, True
        try:
            yield
        finally:
            self._is_telling = was_telling
            self.tell()


def _call(listener: Callable[..., None], news: tuple[object, ...]) -> None:
    """A listener that fails is a bug of its own; the table and the others must not suffer."""
    try:
        listener(*news)
    except Exception:
        log.exception("fleet.listener-failed", listener=repr(listener))
