"""What an answer costs, as its replica says it in the stream."""

import pytest

from control_plane.activator.call import TokenCount

USAGE = b": firstlight-usage 11 4\n\n"


@pytest.mark.parametrize(
    "events", [USAGE + b"data: [DONE]\n\n", b'data: {"text":"a"}\n\n' + USAGE + b"data: [DONE]\n\n"]
)
def test_what_a_replica_says_is_counted_and_taken_out(events: bytes) -> None:
    tokens = TokenCount()

    passed_on = tokens.see(events)

    assert passed_on == events.replace(USAGE, b"")
    assert (tokens.prompt, tokens.completion) == (11, 4)


@pytest.mark.parametrize("said", [b"", b"many", b"-1", b"1e3", b"9" * 5000, "٣".encode()])
def test_a_number_of_tokens_that_is_none_counts_as_none(said: bytes) -> None:
    tokens = TokenCount()

    tokens.begin([(b"firstlight-prompt-tokens", said), (b"firstlight-completion-tokens", b"7")])

    assert (tokens.prompt, tokens.completion) == (0, 7)


@pytest.mark.parametrize(
    "text", [b": firstlight-usage 0 0", b": firstlight-usage ", b"data: data: "]
)
def test_a_text_that_looks_like_it_is_a_text(text: bytes) -> None:
    tokens = TokenCount()
    events = b'data: {"text":"' + text + b'"}\n\n' + b'data: {"text":" "}\n\n'

    assert tokens.see(events) == events
    assert (tokens.prompt, tokens.completion) == (0, 2)
    assert tokens.see(USAGE) == b""
    assert (tokens.prompt, tokens.completion) == (11, 4)
