"""Tokens of one request become outputs."""

from dataclasses import dataclass

from tests.engine.tiny import request
from worker.engine.choice import Choice
from worker.engine.completion import Completion
from worker.engine.request import Output
from worker.tokenizer.detokenizer import Detokenizer

END = 0


@dataclass(frozen=True)
class Words:
    """Token n is the n-th spelling."""

    spellings: tuple[bytes, ...]
    eos_token_ids: frozenset[int] = frozenset([END])

    def stream(self) -> Detokenizer:
        return Detokenizer(self.token_bytes, drops_first_space=False)

    def token_bytes(self, token_id: int) -> bytes:
        return self.spellings[token_id]


def complete(
    spellings: tuple[bytes, ...], tokens: list[int], max_tokens: int = 99, **sampling: object
) -> list[Output]:
    completion = Completion(request("r", [1], max_tokens, **sampling), Words(spellings))
    return [completion.push(Choice(token, -0.25, ((token, -0.25),))) for token in tokens]


def told(outputs: list[Output]) -> list[tuple[str, str | None]]:
    return [(output.text, output.finish_reason) for output in outputs]


def logprobs(outputs: list[Output]) -> list[list[int]]:
    return [[each.token_id for each in output.logprobs] for output in outputs]


def test_each_token_gives_its_text() -> None:
    outputs = complete((b"", b"Hello", b" world"), [1, 2, END])
    assert told(outputs) == [("Hello", None), (" world", None), ("", "stop")]
    assert [output.token_ids for output in outputs] == [(1,), (2,), (END,)]


def test_a_character_of_several_tokens_comes_whole() -> None:
    smile = "🙂".encode()
    outputs = complete((b"", smile[:1], smile[1:3], smile[3:] + b"!"), [1, 2, 3, END])
    assert told(outputs) == [("", None), ("", None), ("🙂!", None), ("", "stop")]


def test_a_character_that_is_never_finished_is_replaced_at_the_end() -> None:
    smile = "🙂".encode()
    assert told(complete((b"", smile[:2]), [1, END])) == [("", None), ("\ufffd", "stop")]
    assert told(complete((b"", smile[:2]), [1], 1)) == [("\ufffd", "length")]


def test_held_back_text_is_shown_when_the_end_comes() -> None:
    outputs = complete((b"", b"a<", b"b"), [1, END], stop=("<|>",))
    assert told(outputs) == [("a", None), ("<", "stop")]
    assert told(complete((b"", b"a<"), [1], 1, stop=("<|>",))) == [("a<", "length")]


def test_a_stop_string_wins_over_length() -> None:
    outputs = complete((b"", b"a", b"b c"), [1, 2], 2, stop=("b",))
    assert told(outputs) == [("a", None), ("", "stop")]


def test_a_stop_string_may_be_completed_by_the_replacement_of_a_cut_character() -> None:
    outputs = complete((b"", b"a", b"\xf0\x9f"), [1, 2], 2, stop=("\ufffd",))
    assert told(outputs) == [("a", None), ("", "stop")]


def test_logprobs_come_with_their_text_and_not_for_the_end() -> None:
    outputs = complete((b"", b"a", b"<", b"b"), [1, 2, 3, END], stop=("<|>",), logprobs=1)
    assert logprobs(outputs) == [[1], [], [2, 3], []]
    first = outputs[0].logprobs[0]
    assert (first.text, first.bytes, first.logprob) == ("a", b"a", -0.25)
    assert first.top[0].token_id == 1


def test_logprobs_of_a_stop_string_are_not_told() -> None:
    spellings = (b"", b"a", b"b<", b"|", b">")
    outputs = complete(spellings, [1, 2, 3, 4], stop=("<|>",), logprobs=1)
    assert told(outputs) == [("a", None), ("b", None), ("", None), ("", "stop")]
    assert logprobs(outputs) == [[1], [], [], [2]]


def test_logprobs_of_incomplete_characters_keep_their_bytes() -> None:
    smile = "🙂".encode()
    outputs = complete((b"", smile[:2], smile[2:]), [1, 2, END], logprobs=0)
    assert [each.bytes for output in outputs for each in output.logprobs] == [
        smile[:2],
        smile[2:],
    ]
