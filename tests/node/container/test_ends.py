"""How a container ended, in words and as a typed problem."""

import pytest

from worker.node.container.ends import exit_of, explained
from worker.node.launcher import Exit


@pytest.mark.parametrize(
    ("status", "end", "words"),
    [
        (0, Exit(0), "exit status 0"),
        (1, Exit(1), "exit status 1"),
        (128, Exit(128), "exit status 128"),
        (137, Exit(-9), "killed by SIGKILL"),
        (139, Exit(-11), "killed by SIGSEGV"),
        (255, Exit(255), "exit status 255"),
    ],
)
def test_a_status_above_128_is_a_signal_where_there_is_one(
    status: int, end: Exit, words: str
) -> None:
    assert exit_of(status) == end
    assert str(end) == words


def end(status: int | None, *, kills: int = 0, said: str = "", known: Exit = Exit()) -> Exit:  # noqa: B008
    return explained(known, status, kills=kills, memory_bytes=512 << 20, said=said)


def test_a_kill_for_memory_is_its_own_problem_and_names_the_limit() -> None:
    ended = end(137, kills=1)

    assert (ended.status, ended.code) == (-9, "replica-out-of-memory")
    assert str(ended) == "killed by SIGKILL: it needed more memory than its 512 MiB"


def test_one_that_lost_a_helper_to_memory_and_ended_in_order_has_no_problem() -> None:
    assert end(0, kills=1) == Exit(0)


def test_a_program_that_loses_its_image_says_more_than_a_signal() -> None:
    ended = end(135, said="Fatal Python error: Bus error")

    assert ended.status == -7
    assert str(ended).startswith("killed by SIGBUS: a page of its image or its model could not be")


def test_what_the_agent_knows_comes_first() -> None:
    known = Exit(why="registry/x is nowhere", code="image-unavailable")

    assert end(None, known=known) == known


def test_what_it_said_last_is_told_where_it_never_said_hello() -> None:
    assert str(end(1, said="ImportError: x")) == "exit status 1; it said: ImportError: x"


def test_without_the_runtime_its_process_is_gone_and_that_is_all() -> None:
    assert str(end(None)) == "the process is gone"
