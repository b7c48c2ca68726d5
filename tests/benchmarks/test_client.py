"""Reading a streamed answer whose pieces arrived at known times."""

import pytest

from benchmarks.measure.client import RequestFailed, read_answer
from benchmarks.measure.workloads import percentile

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def event(text: str) -> bytes:
    return b'\r\ndata: {"choices":[{"text":"%b"}]}\r\n' % text.encode()


USAGE = b'\r\ndata: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_every_event_has_the_time_of_the_piece_it_began_in() -> None:
    pieces = [(1.0, HEAD), (1.5, event("a") + event("b")), (2.5, event("c")), (2.6, USAGE + DONE)]

    answer = read_answer(1.0, pieces)

    assert answer.text == "abc"
    assert answer.arrivals == (1.5, 1.5, 2.5)
    assert (answer.prompt_tokens, answer.tokens) == (5, 3)
    assert (answer.ttft_s, answer.tpot_s, answer.gaps_s) == (0.5, 0.5, [0.0, 1.0])


def test_an_event_may_be_cut_anywhere() -> None:
    whole = HEAD + event("a") + event("b") + USAGE + DONE

    answer = read_answer(0.0, [(float(i), whole[i : i + 1]) for i in range(len(whole))])

    assert answer.text == "ab"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"",
        HEAD + b'\ndata: {"error":{"message":"no"}}\n\n',
        HEAD + event("a"),
    ],
)
def test_what_is_no_whole_answer_has_failed(raw: bytes) -> None:
    with pytest.raises(RequestFailed):
        read_answer(0.0, [(0.0, raw)])


def test_percentiles_are_values_that_were_seen() -> None:
    ordered = [float(value) for value in range(100)]

    assert (percentile(ordered, 0.5), percentile(ordered, 0.99), percentile([7.0], 0.99)) == (
        50.0,
        99.0,
        7.0,
    )
