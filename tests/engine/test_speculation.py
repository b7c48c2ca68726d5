"""Which guesses are made, and how many are worth their cost."""

import random
from collections.abc import Sequence

import pytest

from worker.engine.guess_cost import MOST_GUESSES, GuessCost, worth
from worker.engine.speculation import NgramProposer, Proposal, Speculation


def plainly(token_ids: Sequence[int], most: int) -> Proposal:
    """The oracle: looks at every place, the longest match and of those the last one."""
    end = len(token_ids)
    for length in (4, 3, 2):
        for position in range(end - 1, length - 1, -1):
            if (
                length <= end
                and token_ids[position - length : position] == token_ids[end - length :]
            ):
                round_ = list(token_ids[position:]) * most
                return Proposal(tuple(round_[:most]), length)
    return Proposal()


def test_guesses_are_what_followed_the_longest_match_where_it_occurred_last() -> None:
    text = [1, 2, 3, 4, 50, 51, 9, 3, 4, 60, 61, 8, 1, 2, 3, 4]
    assert NgramProposer().propose(text, 3) == Proposal((50, 51, 9), 4)
    assert NgramProposer().propose([*text[7:], 7, 3, 4], 2) == Proposal((7, 3), 2)
    assert NgramProposer().propose([1, 2, 3, 4, 5], 3) == Proposal()
    assert NgramProposer().propose([], 3) == NgramProposer().propose([7], 3) == Proposal()


def test_guesses_go_round_where_the_text_does() -> None:
    assert NgramProposer().propose([9, 1, 2, 1, 2, 1], 5) == Proposal((2, 1, 2, 1, 2), 3)


@pytest.mark.parametrize("seed", range(5))
def test_a_growing_text_gives_the_guesses_of_a_plain_search(seed: int) -> None:
    chance = random.Random(seed)
    text = chance.choices(range(4), k=chance.randint(0, 40))
    proposer = NgramProposer()
    for _ in range(60):
        assert proposer.propose(text, 4) == plainly(text, 4)
        text += chance.choices(range(4), k=chance.randint(1, 4))


def test_only_the_end_of_a_long_prompt_is_searched() -> None:
    text = [1, 2, 3, 4, 5, *range(10, 10_000), 2, 3, 4]
    assert NgramProposer().propose(text, 2) == Proposal()
    assert NgramProposer().propose([*text[:8000], 2, 3, 4], 2) == Proposal((5, 10), 3)


@pytest.mark.parametrize(
    ("rate", "base_tokens", "num_sequences", "expected"),
    [
        (1.0, 8.0, 1, MOST_GUESSES),
        (0.95, 8.0, 1, MOST_GUESSES),
        (0.5, 8.0, 1, 2),
        (0.25, 8.0, 1, 1),
        (0.15, 8.0, 1, 0),
        (0.0, 8.0, 1, 0),
        (0.8, 8.0, 4, 3),
        (0.3, 8.0, 4, 0),
        (1.0, 8.0, 4, MOST_GUESSES),
        (1.0, 8.0, 5, 0),
        (0.9, 1.0, 4, 0),
    ],
)
def test_more_is_guessed_the_likelier_guesses_are_and_the_fewer_run(
    rate: float, base_tokens: float, num_sequences: int, expected: int
) -> None:
    assert worth(rate, base_tokens, num_sequences).num_guesses == expected


def test_the_cost_is_learnt_from_steps_with_guesses_and_without() -> None:
    cost = GuessCost()
    assert cost.base_tokens == 8.0
    cost.observe(1, 0, 0.010)
    assert cost.base_tokens == 8.0
    cost.observe(5, 4, 0.014)
    assert cost.base_tokens == pytest.approx(9.0)
    for _ in range(200):
        cost.observe(5, 4, 0.030)
    assert cost.base_tokens == pytest.approx(1.0, abs=0.1)
    for _ in range(200):
        cost.observe(5, 4, 0.001)
    assert cost.base_tokens == 20.0


class Oracle:
    """Guesses that are right, or never."""

    def __init__(self, text: Sequence[int]) -> None:
        self.text = text
        self.is_right = True

    def propose(self, token_ids: Sequence[int], most: int) -> Proposal:
        following = self.text[len(token_ids) : len(token_ids) + most]
        return Proposal(tuple(each + (not self.is_right) for each in following), 2)


def test_guessing_stops_where_it_fails_and_starts_again_where_it_would_not() -> None:
    text = list(range(300))
    oracle = Oracle(text)
    shared = Speculation(GuessCost())
    guesser = shared.begin(oracle)
    told, at = [], 1
    for step in range(120):
        oracle.is_right = not 20 <= step < 80
        guesses = guesser.guess(text[:at], num_sequences=1)
        told.append(len(guesses))
        at += 1 + (len(guesses) if oracle.is_right else 0)
        if at > 280:
            break

    assert told[0] == 2
    assert max(told[:20]) == MOST_GUESSES
    assert sum(told[20:80]) < 60 and told[45:80] == [0] * 35
    assert MOST_GUESSES in told[80:95]


def test_a_new_sequence_is_expected_to_be_like_the_others() -> None:
    shared = Speculation(GuessCost())
    text = list(range(2000))
    oracle = Oracle(text)
    oracle.is_right = False
    for _ in range(4):
        guesser = shared.begin(oracle)
        for at in range(1, 60):
            guesser.guess(text[:at], num_sequences=1)

    assert shared.begin(oracle).guess(text[:1], num_sequences=1) == []
