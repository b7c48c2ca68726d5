"""A tokenizer whose tokens are the bytes of UTF-8, for tests of what needs some tokenizer."""


class ByteTokenizer:
    """256 tokens; a chat is `<role>content` for each message, then `<assistant>`."""

    vocabulary = 256

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def render_chat(self, messages: list[dict[str, str]], *, now: float) -> str:
        turns = [f"<{message['role']}>{message['content']}" for message in messages]
        return "".join([*turns, "<assistant>"])

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])
