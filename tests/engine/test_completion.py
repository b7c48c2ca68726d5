"""Tokens of one request become outputs."""

from dataclasses import dataclass

import pytest

from infra.errors import PlatformError
from tests.engine.tiny import request
from worker.engine.choice import Choice
from worker.engine.completion import Completion
from worker.engine.event import Ending, Failure, NewToken, PromptScores
from worker.engine.request import Output
from worker.tokenizer.detokenizer import Detokenizer

END = 0


@dataclass(frozen=True)
class Words:
    """Token n is the n-th spelling."""

    spellings: tuple[bytes, ...]

    def stream(self) -> Detokenizer:
        return Detokenizer(self.token_bytes, drops_first_space=False)

    def token_bytes(self, token_id: int) -> bytes:
        return self.spellings[token_id]


def complete(
    spellings: tuple[bytes, ...],
    tokens: list[int],
    ending: Ending | None = Ending.END_TOKEN,
    **sampling: object,
) -> list[Output]:
    """The last of the tokens ends the answer in that way."""
    completion = Completion(request("r", [1], 99, **sampling), Words(spellings))
    return [
        output
        for place, token in enumerate(tokens, 1)
        if (output := completion.take(new_token(token, ending if place == len(tokens) else None)))
    ]


def new_token(token: int, ending: Ending | None = None) -> NewToken:
    return NewToken("r", Choice(token, -0.25, ((token, -0.25),)), ending)


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
    assert told(complete((b"", smile[:2]), [1], Ending.LENGTH)) == [("\ufffd", "length")]


def test_held_back_text_is_shown_when_the_end_comes() -> None:
    outputs = complete((b"", b"a<", b"b"), [1, END], stop=("<|>",))
    assert told(outputs) == [("a", None), ("<", "stop")]
    assert told(complete((b"", b"a<"), [1], Ending.LENGTH, stop=("<|>",))) == [("a<", "length")]


def test_a_stop_string_wins_over_length() -> None:
    outputs = complete((b"", b"a", b"b c"), [1, 2], Ending.LENGTH, stop=("b",))
    assert told(outputs) == [("a", None), ("", "stop")]


def test_a_stop_string_may_be_completed_by_the_replacement_of_a_cut_character() -> None:
    outputs = complete((b"", b"a", b"\xf0\x9f"), [1, 2], Ending.LENGTH, stop=("\ufffd",))
    assert told(outputs) == [("a", None), ("", "stop")]


def test_logprobs_come_with_their_text_and_not_for_the_end() -> None:
    outputs = complete((b"", b"a", b"<", b"b"), [1, 2, 3, END], stop=("<|>",), logprobs=1)
    assert logprobs(outputs) == [[1], [], [2, 3], []]
    first = outputs[0].logprobs[0]
    assert (first.text, first.bytes, first.logprob) == ("a", b"a", -0.25)
    assert first.top[0].token_id == 1


def test_logprobs_of_a_stop_string_are_not_told() -> None:
    spellings = (b"", b"a", b"b<", b"|", b">")
    outputs = complete(spellings, [1, 2, 3, 4], None, stop=("<|>",), logprobs=1)
    assert told(outputs) == [("a", None), ("b", None), ("", None), ("", "stop")]
    assert logprobs(outputs) == [[1], [], [], [2]]


def test_logprobs_of_incomplete_characters_keep_their_bytes() -> None:
    smile = "🙂".encode()
    outputs = complete((b"", smile[:2], smile[2:]), [1, 2, END], logprobs=0)
    assert [each.bytes for output in outputs for each in output.logprobs] == [
        smile[:2],
        smile[2:],
    ]


def test_the_token_that_completes_a_guide_is_part_of_the_text() -> None:
    outputs = complete((b"", b"a", b"b"), [1, 2], Ending.GUIDE_COMPLETE, logprobs=0)
    assert told(outputs) == [("a", None), ("b", "stop")]
    assert logprobs(outputs) == [[1], [2]]


def test_the_first_output_has_what_was_told_of_the_prompt_in_parts() -> None:
    asked = request("r", [1, 2, 1], 9, prompt_logprobs=1)
    completion = Completion(asked, Words((b"", b"a", b"b")))

    for token in (2, 1):
        scores = PromptScores("r", (Choice(token, -0.5, ((token, -0.5),)),))
        assert completion.take(scores) is None
    first, second = completion.take(new_token(1)), completion.take(new_token(2))

    assert first is not None and second is not None
    assert [each.text for each in first.prompt_logprobs] == ["a", "b", "a"]
    assert [len(each.top) for each in first.prompt_logprobs] == [0, 1, 1]
    assert second.prompt_logprobs == ()


def test_a_failure_is_raised() -> None:
    completion = Completion(request("r", [1], 9), Words((b"", b"a")))
    with pytest.raises(PlatformError, match="too late"):
        completion.take(Failure("r", PlatformError("too late")))
