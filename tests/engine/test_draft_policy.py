"""When a draft model guesses, and how much."""

import pytest

from worker.engine.draft_policy import DraftPolicy, SequencePolicy
from worker.engine.guess_cost import MOST_GUESSES, GuessCost, worth


class Costs(GuessCost):
    """A draft model that takes a third of a step, and half a token for each it has not seen."""

    base_tokens, pass_tokens, catch_up_tokens = 8.0, 3.0, 0.5


def wanted(policy: SequencePolicy, **changes: int) -> int:
    facts = {"num_behind": 0, "num_generated": 1, "num_to_come": 500, "num_sequences": 1}
    return policy.num_wanted(**(facts | changes))


def tell(policy: SequencePolicy, right: int = 0, wrong: int = 0) -> None:
    for _ in range(right):
        policy.learn([7], [7])
    for _ in range(wrong):
        policy.learn([7], [8])


@pytest.mark.parametrize(
    ("rate", "pass_tokens", "expected"),
    [(1.0, 0, MOST_GUESSES), (0.95, 3, MOST_GUESSES), (0.8, 3, 2), (0.5, 3, 0), (1.0, 12, 0)],
)
def test_a_pass_of_the_draft_model_counts_against_its_guesses(
    rate: float, pass_tokens: float, expected: int
) -> None:
    assert worth(rate, 8.0, 1, pass_tokens=pass_tokens).num_guesses == expected


def test_what_guesses_save_is_told_in_tokens_of_a_step() -> None:
    found = worth(1.0, 8.0, 1, pass_tokens=3.0)
    assert found.num_guesses == 6
    assert found.saved == pytest.approx(9 - (9 + 6 * 4) / 7)


def test_guesses_come_until_they_are_wrong_and_again_when_a_trial_is_right() -> None:
    policy = DraftPolicy(Costs())
    sequence = policy.begin(is_drawn=False)
    assert wanted(sequence) > 0

    tell(sequence, wrong=5)
    assert wanted(sequence) == 0

    for _ in range(20):  # two in a hundred of 9 tokens a step: 3.6 by now, and a trial takes 4
        policy.stepped(1)
    assert wanted(sequence) == 0
    for _ in range(5):
        policy.stepped(1)
    assert wanted(sequence) == 1
    tell(sequence, wrong=1)
    assert wanted(sequence) == 0

    tell(sequence, right=12)
    assert wanted(sequence) > 1


def test_a_trial_goes_on_until_its_guess_was_checked() -> None:
    policy = DraftPolicy(Costs())
    sequence = policy.begin(is_drawn=False)
    tell(sequence, wrong=5)
    policy.stepped(10_000)

    assert wanted(sequence, num_behind=300) == wanted(sequence, num_behind=100) == 1
    tell(sequence, wrong=1)
    assert wanted(sequence, num_behind=300) == 0


def test_catching_up_has_to_pay_in_what_is_left_of_the_answer() -> None:
    sequence = DraftPolicy(Costs()).begin(is_drawn=False)
    assert wanted(sequence, num_behind=100) > 0
    assert wanted(sequence, num_behind=2000) == 0
    assert wanted(sequence, num_behind=100, num_to_come=5) == 0
    assert wanted(sequence, num_behind=2000, num_generated=2000, num_to_come=2000) > 0


def test_answers_are_expected_to_be_as_long_as_those_before() -> None:
    policy = DraftPolicy(Costs())
    for _ in range(10):
        policy.ended(2000)
    assert wanted(policy.begin(is_drawn=False), num_behind=2000) > 0
    for _ in range(100):
        policy.ended(3)
    assert wanted(policy.begin(is_drawn=False), num_behind=100) == 0


def test_greedy_and_drawn_answers_learn_apart() -> None:
    policy = DraftPolicy(Costs())
    tell(policy.begin(is_drawn=True), wrong=20)
    assert wanted(policy.begin(is_drawn=True)) == 0
    assert wanted(policy.begin(is_drawn=False)) > 0


def test_there_is_no_trial_beside_many_sequences() -> None:
    policy = DraftPolicy(Costs())
    policy.stepped(10_000)
    assert wanted(policy.begin(is_drawn=False), num_sequences=5) == 0


def test_the_costs_of_a_draft_model_are_learnt_in_tokens_of_a_step() -> None:
    cost = GuessCost()
    assert cost.pass_tokens == pytest.approx(0.4 * 9)
    cost.observe(1, 0, 0.010)
    cost.observe(5, 4, 0.014)  # a token takes a millisecond, a step nine more
    cost.observe_pass(1, 1, 0.004)
    cost.observe_pass(100, 1, 0.050)
    assert cost.pass_tokens == pytest.approx(4)
    assert cost.catch_up_tokens == pytest.approx(0.5)
    cost.observe_pass(2, 1, 0.008)
    assert cost.pass_tokens == pytest.approx(4.5)
