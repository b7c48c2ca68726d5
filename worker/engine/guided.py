"""Answers that must look like something: guides become masks over the vocabulary.

By llguidance, which walks an Earley parser and a lexer of derivatives over the vocabulary's prefix
tree: a mask takes microseconds, and nothing is computed for the whole grammar beforehand.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from infra.errors import Invalid
from worker.engine.request import Guide

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MOST_KEPT = 64
_QUIET = 0
# Models that may put in as much white space as they like sometimes never put in anything else.
_JSON: "JsonCompileOptions" = {"whitespace_pattern": r"[ \n\t]{0,16}"}
_LIMITS = LLParserLimits(verbose_errors=False)


class GuideTokenizer(Protocol):
    """What guides need of a tokenizer."""

    @property
    def eos_token_ids(self) -> frozenset[int]: ...
    @property
    def special_token_ids(self) -> frozenset[int]: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def token_bytes(self, token_id: int) -> bytes: ...


class Matcher:
    """Where one answer stands in its guide. Used by one thread."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_finished(self) -> bool:
        """Nothing may be added any more."""
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str | None:
        """Why it cannot go on: its guide turned out to be too complex."""
        return self._matcher.get_error() if self._matcher.is_error() else None

    def fill(self, address: int, size: int) -> None:
        """Writes which tokens may come next, a bit each, to that memory of `size` bytes."""
        self._matcher.unsafe_compute_mask_ptr(address, size)

    def accept(self, token_ids: Sequence[int]) -> int:
        """Goes on by as many of the tokens as may come; returns their number."""
        count: int = self._matcher.try_consume_tokens(list(token_ids))
        return count

    def count_allowed(self, token_ids: Sequence[int]) -> int:
        """How many of the tokens may come, with another after them; stays where it is."""
        count = 0
        for token_id in token_ids:
            if not self.accept([token_id]):
                break
            count += 1
            if self.is_finished:
                self.take_back(count)
                return count - 1
        self.take_back(count)
        return count

    def take_back(self, count: int) -> None:
        """Forgets the last tokens."""
        self._matcher.rollback(count)


class Guides:
    """Compiles guides for one model. Any thread may call."""

    def __init__(self, tokenizer: GuideTokenizer, *, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # guards the two below
        self._library_tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Guide, LLMatcher] = OrderedDict()

    def compile(self, guide: Guide) -> Matcher:
        """At the guide's beginning. The first call takes a fifth of a second more.

        Raises Invalid for a guide that makes no sense, or is too large for the compiler's limits.
        """
        with self._lock:
            compiled = self._compiled.get(guide)
            if compiled is None:
                compiled = self._compile(guide)
                self._compiled[guide] = compiled
                if len(self._compiled) > MOST_KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(guide)
            return Matcher(compiled.deep_copy())

    def _compile(self, guide: Guide) -> LLMatcher:
        if self._library_tokenizer is None:
            self._library_tokenizer = self._read_vocabulary()
        try:
            grammar = _grammar(guide)
        except ValueError as error:
            raise Invalid(f"the guide is no JSON: {error}", param=_param(guide)) from error
        matcher = LLMatcher(self._library_tokenizer, grammar, log_level=_QUIET, limits=_LIMITS)
        if matcher.is_error():
            reason = matcher.get_error().strip()[:500]
            raise Invalid(f"what should guide the answer: {reason}", param=_param(guide))
        return matcher

    def _read_vocabulary(self) -> LLTokenizer:
        ends = sorted(self._tokenizer.eos_token_ids)
        if not ends:
            raise Invalid("the model has no end token, without which no guide can end an answer")
        wrapper = TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocabulary, ends[0]))
        return LLTokenizer(wrapper, n_vocab=self._vocabulary, eos_token=ends)


class _Vocabulary:
    """As llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokenizer: GuideTokenizer, vocabulary: int, end: int) -> None:
        self.eos_token_id = end
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocabulary)]
        special = tokenizer.special_token_ids | tokenizer.eos_token_ids
        self.special_token_ids = sorted(each for each in special if each < vocabulary)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False)


def _grammar(guide: Guide) -> str:
    match guide.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(guide.text, overrides=_JSON)
        case "json_object":
            return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_JSON)
        case "regex":
            return LLMatcher.grammar_from_regex(guide.text)
        case "choice":
            choices = " | ".join(json.dumps(choice) for choice in json.loads(guide.text))
            return LLMatcher.grammar_from_lark(f"start: {choices}")
        case "grammar":
            return LLMatcher.grammar_from_lark(guide.text)


def _param(guide: Guide) -> str:
    return "response_format" if guide.kind.startswith("json") else "structured_outputs"
