"""Text to token ids and back, as the model's own files say."""

import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from infra.errors import Invalid, SourceInvalid
from infra.json_file import read_json_object
from worker.tokenizer.chat_template import MOST_TEMPLATE_CHARACTERS, ChatTemplate
from worker.tokenizer.detokenizer import Detokenizer
from worker.tokenizer.spelling import decoding_of

MOST_TOKENIZER_BYTES = 128 << 20
MOST_CONFIG_BYTES = 16 << 20
_SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """A `tokenizer.json` with the chat template and end tokens beside it; any thread may use it."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        eos_token_ids: frozenset[int],
        chat_template: ChatTemplate | None,
    ) -> None:
        self.eos_token_ids = eos_token_ids
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._decoding = decoding_of(tokenizer)
        self._added = tokenizer.get_added_tokens_decoder()
        self._spelling = cache(self._spell)
        self._special = self.special_token_ids

    @classmethod
    def load(cls, model_dir: Path) -> "Tokenizer":
        """Reads a model's files (85 ms for 49,152 tokens, all of it holding the GIL).

        Raises SourceInvalid for missing or malformed files, UnsupportedModel for a kind of
        tokenizer that streams of text cannot be made with.
        """
        tokenizer = _read_tokenizer(model_dir / "tokenizer.json")
        config = _read_optional(model_dir / "tokenizer_config.json")
        special_tokens = _special_tokens(config)
        source = _template_source(model_dir / "chat_template.jinja", config)
        return cls(
            tokenizer,
            eos_token_ids=_eos_token_ids(model_dir, tokenizer, special_tokens),
            chat_template=None if source is None else ChatTemplate(source, special_tokens),
        )

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""
        return frozenset(token_id for token_id, added in self._added.items() if added.special)

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; special tokens spelled out in the text become themselves."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def render_chat(self, messages: list[dict[str, str]], *, now: float) -> str:
        """The conversation as the model's template writes it, ready for the assistant's answer.

        Templates that tell the date tell that of `now`, in unix seconds.

        Raises Invalid when there is no template or it refuses the messages.
        """
        if self._chat_template is None:
            raise Invalid(
                "the model has no chat template",
                hint="send a prompt to /v1/completions",
                param="messages",
            )
        return self._chat_template.render(messages, now=now)

    def encode_chat(self, messages: list[dict[str, str]], *, now: float) -> list[int]:
        """Token ids of the conversation."""
        return self.encode(self.render_chat(messages, now=now), add_special_tokens=False)

    def stream(self) -> Detokenizer:
        """A fresh detokeniser, which leaves special tokens out."""
        return Detokenizer(self._text_bytes, drops_first_space=self._decoding.drops_first_space)

    def token_bytes(self, token_id: int) -> bytes:
        """The token's exact spelling; empty for an id without a token."""
        return self._spelling(token_id)

    def spells_like(self, other: "Tokenizer") -> bool:
        """Whether both have the same tokens under the same ids."""
        return self.vocabulary == other.vocabulary and all(
            self.token_bytes(token_id) == other.token_bytes(token_id)
            for token_id in range(self.vocabulary)
        )

    def _text_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special else self._spelling(token_id)

    def _spell(self, token_id: int) -> bytes:
        if (added := self._added.get(token_id)) is not None:
            return added.content.encode()
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None
        return b"" if token is None else self._decoding.bytes_of(token)


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    _check_file(path, most_bytes=MOST_TOKENIZER_BYTES)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise SourceInvalid(f"{path.name} is not a tokenizer: {error}") from error


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, most_bytes=MOST_CONFIG_BYTES) if path.exists() else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Name to content; a token is written as a text or as an object with its `content`."""
    found = {}
    for name in _SPECIAL_TOKEN_NAMES:
        match config.get(name):
            case str(content) | {"content": str(content)}:
                found[name] = content
            case _:
                pass
    return found


def _template_source(path: Path, config: Mapping[str, Any]) -> str | None:
    """The template's own file first, then `tokenizer_config.json`."""
    if path.exists():
        _check_file(path, most_bytes=4 * MOST_TEMPLATE_CHARACTERS)
        try:
            return path.read_text("utf-8")
        except ValueError as error:
            raise SourceInvalid(f"{path.name} is not UTF-8") from error
    match config.get("chat_template"):
        case str(source):
            return source
        case list(named):
            return next(
                (
                    entry["template"]
                    for entry in named
                    if isinstance(entry, dict)
                    and entry.get("name") == "default"
                    and isinstance(entry.get("template"), str)
                ),
                None,
            )
        case _:
            return None


def _eos_token_ids(
    model_dir: Path, tokenizer: tokenizers.Tokenizer, special_tokens: Mapping[str, str]
) -> frozenset[int]:
    """From the generation settings, else the model's, else the tokenizer's end token."""
    for filename in ("generation_config.json", "config.json"):
        match _read_optional(model_dir / filename).get("eos_token_id"):
            case int(token_id):
                return frozenset([token_id])
            case list(token_ids) if token_ids and all(type(each) is int for each in token_ids):
                return frozenset(token_ids)
            case _:
                pass
    end: int | None = tokenizer.token_to_id(special_tokens.get("eos_token", ""))
    return frozenset() if end is None else frozenset([end])


def _check_file(path: Path, *, most_bytes: int) -> None:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise SourceInvalid(f"{path.name} is missing") from error
    except OSError as error:
        raise SourceInvalid(f"{path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size > most_bytes:
        raise SourceInvalid(f"{path.name} is not a file of at most {most_bytes} bytes")
