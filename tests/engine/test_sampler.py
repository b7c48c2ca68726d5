"""Choosing tokens from logits."""

import math

import pytest
import torch

from worker.engine.choice import Choice, Draw, uniform
from worker.engine.sampler import sample


def draw(
    uniform: float = 0.0,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    num_logprobs: int | None = None,
) -> Draw:
    return Draw(temperature, top_p, uniform, num_logprobs)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def tokens(logits: torch.Tensor, *draws: Draw) -> list[int]:
    choices = sample(logits.expand(len(draws), -1), draws)
    return [choice.token_id for choice in choices if choice is not None]


def test_temperature_0_takes_the_largest_and_of_equal_ones_the_first() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert tokens(logits, draw(0.99, temperature=0)) == [1]


def test_a_draw_inverts_the_cumulative_sum_of_the_sorted_probabilities() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    drawn = tokens(logits, *(draw(place) for place in (0.0, 0.49, 0.51, 0.79, 0.81, 0.999)))
    assert drawn == [1, 1, 2, 2, 0, 0]


def test_top_p_cuts_after_the_token_that_reaches_it() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    assert tokens(logits, draw(0.999, top_p=0.5)) == [1]
    assert tokens(logits, draw(0.7, top_p=0.6)) == [2]
    assert tokens(logits, draw(0.999, top_p=0.79)) == [2]
    assert tokens(logits, draw(0.999, top_p=0.81)) == [0]
    assert tokens(logits, draw(0.999, top_p=1e-9)) == [1]


def test_temperature_flattens_and_sharpens() -> None:
    logits = logits_of(0.2, 0.8)
    assert tokens(logits, draw(0.79, temperature=1.0)) == [1]
    assert tokens(logits, draw(0.79, temperature=100.0)) == [0]
    assert tokens(logits, draw(0.99, temperature=0.1)) == [1]
    assert tokens(logits, draw(0.999, temperature=1e-300)) == [1]


@pytest.mark.parametrize("top_p", [1.0, 0.99, 0.5])
def test_beyond_the_first_candidates_the_draw_is_exact(top_p: float) -> None:
    vocabulary = 1000
    logits = torch.arange(vocabulary).mul(-1e-6)[None]
    drawn = tokens(logits, *(draw(place / 50, top_p=top_p) for place in range(50)))
    kept = math.ceil(vocabulary * top_p)
    assert drawn == sorted(drawn)
    assert drawn[0] == 0 and kept * 0.97 < drawn[-1] < kept


def test_equal_logits_are_all_drawn_and_none_twice() -> None:
    logits = torch.zeros(1, 1000)
    drawn = tokens(logits, *(draw((place + 0.5) / 1000) for place in range(1000)))
    assert len(set(drawn)) > 990  # float sums move a border or two


def test_draws_follow_the_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 500)
    draws = [draw(uniform(1, index), top_p=0.9) for index in range(4000)]
    counts = torch.bincount(torch.tensor(tokens(logits, *draws)), minlength=500) / 4000

    probabilities = torch.softmax(logits[0], -1)
    ordered, order = probabilities.sort(descending=True)
    is_kept = ordered.cumsum(0) - ordered < 0.9
    expected = torch.zeros(500)
    expected[order[is_kept]] = ordered[is_kept] / ordered[is_kept].sum()

    assert (counts > 0).logical_and(expected == 0).sum() == 0
    assert float((counts - expected).abs().sum()) < 0.3


def test_each_row_is_chosen_alone() -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 300).bfloat16()
    draws = [
        draw(0.3, num_logprobs=2),
        draw(temperature=0),
        draw(0.99, temperature=2.0),
        draw(0.5, top_p=0.8),
        draw(temperature=0, num_logprobs=0),
        draw(0.999),
    ]
    together = sample(logits, draws)
    assert together == [sample(logits[row : row + 1], [draws[row]])[0] for row in range(6)]


def test_logprobs_are_natural_logarithms_before_temperature() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    choice = sample(logits, [draw(0.999, temperature=7.0, num_logprobs=2)])[0]
    assert choice is not None
    assert choice.token_id == 0
    assert choice.logprob == pytest.approx(math.log(0.2))
    assert [token for token, _ in choice.top] == [1, 2]
    assert [logprob for _, logprob in choice.top] == pytest.approx([math.log(0.5), math.log(0.3)])


def test_more_logprobs_than_there_are_tokens() -> None:
    choice = sample(logits_of(0.5, 0.5), [draw(num_logprobs=20)])[0]
    assert choice is not None and len(choice.top) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_have_no_choice(bad: float) -> None:
    logits = torch.tensor([[0.0, bad, 1.0], [0.0, 2.0, -math.inf], [-math.inf] * 3])
    assert sample(logits, [draw(temperature=0)] * 3) == [None, _is_token(1), None]
    assert sample(logits, [draw(0.1)] * 3) == [None, _is_token(1), None]


class _is_token:  # noqa: N801 - reads like a value
    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and other.token_id == self.token_id

    __hash__ = None  # type: ignore[assignment]


def test_no_rows_give_no_choices() -> None:
    assert sample(torch.empty(0, 10), []) == []


def test_uniform_numbers_depend_on_seed_and_place_alone() -> None:
    numbers = [uniform(3, index) for index in range(1000)]
    assert numbers == [uniform(3, index) for index in range(1000)]
    assert uniform(4, 0) != numbers[0] and uniform(-(1 << 63), 0) != numbers[0]
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 1000 - 0.5) < 0.05
