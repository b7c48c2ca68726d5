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
        self._rest = b""  # of a character that was begun

    def push(self, token_id: int) -> str:
        """The text that the token completes, possibly none."""
        spelling = self._text_bytes(token_id)
        if self._drops_first_space and spelling:
            self._drops_first_space = False
            spelling = spelling.removeprefix(b" ")
        begun = self._rest + spelling
        text, whole = codecs.utf_8_decode(begun, "replace")
        self._rest = begun[whole:]
        return text

    def flush(self) -> str:
        """U+FFFD for a character that was begun, when no more tokens will come."""
        rest, self._rest = self._rest, b""
        return rest.decode(errors="replace")
