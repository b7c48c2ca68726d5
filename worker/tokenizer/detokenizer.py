"""Text out of tokens that arrive one by one."""

import codecs
from collections.abc import Callable


class Detokenizer:
    """Gives text as soon as it is whole characters.

    The pieces together equal the bytes of all tokens decoded at once, with U+FFFD for what is not
    UTF-8.
    """

    def __init__(self, text_bytes: Callable[[int], bytes], *, drops_first_space: bool) -> None:
        self._text_bytes = text_bytes
        self._drops_first_space = drops_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that the token completes, possibly none."""
        spelling = self._text_bytes(token_id)
        if self._drops_first_space and spelling:
            self._drops_first_space = False
            spelling = spelling.removeprefix(b" ")
        return self._decoder.decode(spelling)

    def flush(self) -> str:
        """U+FFFD for a character that was begun, when no more tokens will come."""
        return self._decoder.decode(b"", final=True)
