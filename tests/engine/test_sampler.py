"""Choosing tokens from logits."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import pytest
import torch

from tests.support.native import INSTRUCTION_SETS, native
from worker.engine.choice import Choice, uniform
from worker.engine.request import SamplingParams
from worker.engine.sampler import Row, Sampler, sample
from worker.kernels import native_sampling
from worker.kernels.native import library
from worker.kernels.native_kernels import NativeKernels
from worker.kernels.port import Kernels
from worker.kernels.sampling import Bias, Draw, Penalties, TokenCounts, Unchosen
from worker.kernels.torch_kernels import TorchKernels

ORACLE = TorchKernels(torch.float32)
KERNELS: Kernels = ORACLE


@pytest.fixture(
    autouse=True, params=["torch", *(pytest.param(s, marks=native) for s in INSTRUCTION_SETS)]
)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything here holds of every way to sample."""
    if request.param == "torch":
        yield
        return
    library.use_instruction_set(request.param)
    monkeypatch.setattr("tests.engine.test_sampler.KERNELS", NativeKernels(library.load()))
    yield
    library.use_instruction_set(INSTRUCTION_SETS[0])


draw = Draw
greedy = partial(Draw, temperature=0)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def tokens(logits: torch.Tensor, *draws: Draw, masks: torch.Tensor | None = None) -> list[int]:
    return KERNELS.choose(logits.expand(len(draws), -1).contiguous(), draws, masks)


def mask_of(*allowed: int, vocabulary: int) -> torch.Tensor:
    words = [0] * -(-vocabulary // 32)
    for token in allowed:
        words[token // 32] |= 1 << token % 32
    signed = [word - (1 << 32) if word >> 31 else word for word in words]
    return torch.tensor([signed], dtype=torch.int32)


def occurring(prompt: Sequence[int] = (), answer: Sequence[int] = ()) -> TokenCounts:
    return TokenCounts(prompt).ahead(answer)


def penalised(
    occurred: TokenCounts, *, repetition: float = 1, presence: float = 0, frequency: float = 0
) -> Draw:
    return greedy(penalties=Penalties(repetition, presence, frequency, occurred))


def test_temperature_0_takes_the_largest_and_of_equal_ones_the_first() -> None:
    assert tokens(torch.tensor([[0.0, 3.0, 3.0, 1.0]]), greedy(uniform=0.99)) == [1]


def test_a_draw_inverts_the_cumulative_sum_of_the_sorted_probabilities() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    places = (0.0, 0.49, 0.51, 0.79, 0.81, 0.999)
    assert tokens(logits, *(draw(uniform=place) for place in places)) == [1, 1, 2, 2, 0, 0]


def test_top_p_cuts_after_the_token_that_reaches_it() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    assert tokens(logits, draw(uniform=0.999, top_p=0.49)) == [1]
    assert tokens(logits, draw(uniform=0.7, top_p=0.6)) == [2]
    assert tokens(logits, draw(uniform=0.999, top_p=0.79)) == [2]
    assert tokens(logits, draw(uniform=0.999, top_p=0.81)) == [0]
    assert tokens(logits, draw(uniform=0.999, top_p=1e-9)) == [1]


def test_top_k_keeps_the_first_and_top_p_is_a_share_of_them() -> None:
    logits = logits_of(0.2, 0.4, 0.3, 0.1)
    last = partial(draw, uniform=0.999)
    assert tokens(logits, last(top_k=1), last(top_k=2), last(top_k=3)) == [1, 2, 0]
    assert tokens(logits, last(top_k=4), last(top_k=99), last()) == [3, 3, 3]
    # Of all, 0.4 and 0.3 reach 0.6; of two, so does 0.4 / 0.7 not, but it reaches 0.5.
    assert tokens(logits, last(top_k=2, top_p=0.6), last(top_k=2, top_p=0.5)) == [2, 1]
    assert tokens(torch.zeros(1, 100), last(top_k=7)) == [6]


def test_min_p_keeps_what_is_nearly_as_probable_as_the_first() -> None:
    logits = logits_of(0.2, 0.5, 0.25, 0.05)
    last = partial(draw, uniform=0.999)
    drawn = tokens(logits, *(last(min_p=share) for share in (0.0, 0.3, 0.45, 0.6, 1.0)))
    assert drawn == [3, 0, 2, 1, 1]
    assert tokens(torch.zeros(1, 5), last(min_p=1.0)) == [4]


def test_temperature_flattens_and_sharpens() -> None:
    logits = logits_of(0.2, 0.8)
    assert tokens(logits, draw(uniform=0.79, temperature=1.0)) == [1]
    assert tokens(logits, draw(uniform=0.79, temperature=100.0)) == [0]
    assert tokens(logits, draw(uniform=0.99, temperature=0.1)) == [1]
    assert tokens(logits, draw(uniform=0.999, temperature=1e-300)) == [1]
    assert tokens(logits, draw(uniform=0.51, temperature=1e300)) == [0]


def test_min_p_is_of_what_the_temperature_made() -> None:
    logits = logits_of(0.2, 0.8)
    last = partial(draw, uniform=0.999, min_p=0.3)
    assert tokens(logits, last(), last(temperature=2.0)) == [1, 0]


def test_a_bias_is_added_and_may_forbid() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert tokens(logits, greedy(bias=Bias([(0, 2.5)]))) == [0]
    assert tokens(logits, greedy(bias=Bias([(2, -math.inf), (1, -5.0)]))) == [0]
    never = draw(uniform=0.999999999999, bias=Bias([(0, -math.inf)]))
    assert tokens(logits, never) == [1]


def test_repetition_divides_positive_logits_and_multiplies_negative_ones() -> None:
    occurred = occurring(prompt=[1], answer=[2])
    assert tokens(torch.tensor([[1.4, 2.0, 2.1]]), penalised(occurred, repetition=1.4)) == [2]
    assert tokens(torch.tensor([[1.6, 2.0, 2.1]]), penalised(occurred, repetition=1.4)) == [0]
    assert tokens(torch.tensor([[-1.3, -1.0, -1.0]]), penalised(occurred, repetition=1.2)) == [1]
    assert tokens(torch.tensor([[-1.3, -1.0, -1.0]]), penalised(occurred, repetition=1.4)) == [0]
    assert tokens(torch.tensor([[2.0, 1.5, 0.0]]), penalised(occurred, repetition=0.5)) == [1]


def test_presence_and_frequency_are_of_the_answer_only() -> None:
    occurred = occurring(prompt=[0], answer=[1, 2, 1, 1])
    logits = torch.tensor([[1.0, 2.0, 1.9]])
    assert tokens(logits, penalised(occurred, presence=0.8)) == [1]
    assert tokens(logits, penalised(occurred, presence=1.2)) == [0]
    assert tokens(logits, penalised(occurred, frequency=0.2)) == [2]
    assert tokens(logits, penalised(occurred, frequency=0.4, presence=0.4)) == [2]
    assert tokens(logits, penalised(occurred, frequency=0.4, presence=0.6)) == [0]
    assert tokens(logits, penalised(occurred, frequency=-0.5)) == [1]


def test_counts_are_those_of_all_tokens_added_and_a_copy_goes_ahead() -> None:
    counts = TokenCounts([5, 3, 5])
    for token in (3, 7, 7):
        counts.add(token)
    ahead = counts.ahead([7, 9])
    assert (list(counts.token_ids), list(counts.counts)) == ([5, 3, 7], [0, 1, 2])
    assert (list(ahead.token_ids), list(ahead.counts)) == ([5, 3, 7, 9], [0, 1, 3, 1])


def test_a_mask_leaves_only_what_it_allows() -> None:
    logits = torch.arange(70.0)[None]
    masks = torch.cat(
        [
            mask_of(3, 31, 32, vocabulary=70),
            mask_of(*range(70), vocabulary=70),
            mask_of(69, vocabulary=70),
        ]
    )
    assert tokens(logits, *(greedy(mask=mask) for mask in (0, 1, 2, None)), masks=masks) == [
        *(32, 69, 69, 69)
    ]
    flat = draw(temperature=1e9, mask=0, uniform=0.99)
    assert tokens(logits, flat, draw(temperature=1e9, uniform=0.51), masks=masks) == [3, 34]


def test_where_nothing_is_allowed_nothing_is_chosen() -> None:
    logits = torch.zeros(1, 40)
    masks = torch.cat([mask_of(vocabulary=40), mask_of(5, vocabulary=40)])
    ban = Bias([(5, -math.inf)])
    for kind in (draw, greedy):
        assert tokens(logits, kind(mask=0), kind(mask=1), kind(mask=1, bias=ban), masks=masks) == [
            *(Unchosen.NOTHING_ALLOWED, 5, Unchosen.NOTHING_ALLOWED)
        ]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_have_no_choice(bad: float) -> None:
    vocabulary = 40
    logits = torch.full((3, vocabulary), -math.inf)
    logits[0, :3] = torch.tensor([0.0, bad, 1.0])
    logits[1, 1] = 2.0
    masks = mask_of(0, 1, 2, vocabulary=vocabulary)
    for kind in (greedy, partial(draw, uniform=0.1)):
        for each in (kind(), kind(mask=0)):
            assert KERNELS.choose(logits, [each] * 3, masks) == [
                *(Unchosen.NOT_FINITE, 1, Unchosen.NOTHING_ALLOWED)
            ]


@pytest.mark.parametrize("top_p", [1.0, 0.99, 0.5])
def test_draws_from_many_nearly_equal_tokens_are_exact(top_p: float) -> None:
    vocabulary = 1000
    logits = torch.arange(vocabulary).mul(-1e-6)[None]
    drawn = tokens(logits, *(draw(uniform=place / 50, top_p=top_p) for place in range(50)))
    kept = math.ceil(vocabulary * top_p)
    assert drawn == sorted(drawn)
    assert drawn[0] == 0 and kept * 0.97 < drawn[-1] < kept


def test_equal_logits_are_all_drawn_by_their_ids() -> None:
    logits = torch.zeros(1, 1000)
    drawn = tokens(logits, *(draw(uniform=(place + 0.5) / 1000) for place in range(1000)))
    assert drawn == list(range(1000))


def test_it_does_what_a_plain_loop_does() -> None:
    chance = random.Random(3)
    for _ in range(300):
        logits, each, masks = random_case(chance, vocabulary=chance.choice([3, 40, 100]))
        expected, distance = by_hand(logits[0].tolist(), each, masks)
        if distance > 1e-5:
            assert KERNELS.choose(logits, [each], masks) == [expected]


@pytest.mark.parametrize("spread", ["a model's", "flat"])
def test_a_large_vocabulary_gives_what_sorting_all_of_it_gives(spread: str) -> None:
    vocabulary, rows = 20_003, 24
    chance, generator = random.Random(5), torch.Generator().manual_seed(5)
    logits = torch.randn(rows, vocabulary, generator=generator)
    if spread == "a model's":  # by Zipf's law
        logits = logits * 0.7 - 1.3 * torch.arange(1, vocabulary + 1).log()
    before = logits.clone()
    kept = [
        {"top_p": 0.9, "temperature": 0.8},
        {},
        {"temperature": 3.0, "top_p": 0.99},
        {"top_k": 50},
        {"top_k": 15_000, "top_p": 0.7},
        {"min_p": 0.02},
        {"min_p": 0.001, "top_p": 0.95, "top_k": 400},
        {"temperature": 0.0},
    ]
    draws = [
        Draw(
            uniform=chance.random(),
            mask=chance.choice([None, 0]),
            bias=Bias([(chance.randrange(vocabulary), 5.0)]),
            **kept[row % len(kept)],  # type: ignore[arg-type]
        )
        for row in range(rows)
    ]
    masks = torch.randint(-(1 << 31), 1 << 31, (1, -(-vocabulary // 32)), generator=generator)
    chosen = KERNELS.choose(logits, draws, masks.int())
    expected = ORACLE.choose(logits, draws, masks.int())
    # Of thousands of tokens that are nearly equal, sums may leave the neighbour.
    assert sum(a != b for a, b in zip(chosen, expected, strict=True)) <= (spread == "flat")
    assert torch.equal(logits, before)


def test_logprobs_of_a_large_vocabulary_are_those_of_log_softmax() -> None:
    logits = torch.randn(5, 20_003, generator=torch.Generator().manual_seed(6)) * 3
    logits[2] = logits[2].round()
    logits[3, 100:] = -math.inf
    asked = [(4, 7), (0, 20_002), (2, 5), (3, 1), (2, 0)]
    rows, token_ids = map(list, zip(*asked, strict=True))
    for found, (row, token) in zip(
        KERNELS.log_probabilities(logits, rows, token_ids, 20), asked, strict=True
    ):
        logprobs = torch.log_softmax(logits[row].double(), -1)
        order = logits[row].sort(descending=True, stable=True).indices
        assert found.value == pytest.approx(float(logprobs[token]), abs=2e-5)
        assert [token for token, _ in found.likeliest] == order[:20].tolist()
        expected = logprobs[order[:20]].tolist()
        assert [logprob for _, logprob in found.likeliest] == pytest.approx(expected, abs=2e-5)


def random_case(
    chance: random.Random, *, vocabulary: int
) -> tuple[torch.Tensor, Draw, torch.Tensor]:
    spread = chance.choice([0.1, 1.0, 5.0])
    logits = torch.tensor([[chance.gauss(0, spread) for _ in range(vocabulary)]])
    if chance.random() < 0.3:
        logits = logits.round()  # ties
    some = partial(chance.choices, range(vocabulary))
    either: Callable[..., float] = lambda *values: chance.choice(values)  # noqa: E731
    each = Draw(
        temperature=either(0, 0.3, 1.0, 1.0, 3.0),
        top_k=int(either(0, 0, 1, 2, vocabulary // 2, vocabulary, vocabulary + 1)),
        top_p=either(1.0, 1.0, 0.95, 0.5, 0.01),
        min_p=either(0.0, 0.0, 0.05, 0.5),
        uniform=chance.choice([0.0, chance.random(), chance.random(), 1 - 2**-53]),
        bias=Bias((token, chance.uniform(-3, 3)) for token in set(some(k=3))),
        penalties=chance.choice([
            None,
            Penalties(either(1.0, 1.3, 0.8), either(0.0, 0.7), either(0.0, -0.4), occurring(
                some(k=10), some(k=20)
            )),
        ]),
        mask=chance.choice([None, 0]),
    )  # fmt: skip
    allowed = chance.sample(range(vocabulary), k=chance.randint(1, vocabulary))
    return logits, each, mask_of(*allowed, vocabulary=vocabulary)


def by_hand(logits: list[float], draw: Draw, masks: torch.Tensor) -> tuple[int, float]:
    """The token, and how near a border the draw fell."""
    values = dict(enumerate(logits))
    assert draw.bias is not None
    for token, value in zip(draw.bias.token_ids, draw.bias.values, strict=True):
        values[token] += value
    if penalties := draw.penalties:
        occurred = penalties.occurred
        for token, count in zip(occurred.token_ids, occurred.counts, strict=True):
            repetition = penalties.repetition
            values[token] *= 1 / repetition if values[token] > 0 else repetition
            values[token] -= penalties.frequency * count + penalties.presence * min(count, 1)
    if draw.mask is not None:
        words = masks[draw.mask].tolist()
        values = {t: value for t, value in values.items() if words[t // 32] >> t % 32 & 1}
    # Rounded as the logits are, so that what is equal there is equal here.
    order = sorted(values, key=lambda token: (-float(torch.tensor(values[token])), token))
    if draw.temperature == 0:
        near = [values[order[0]] - values[token] for token in order[1:2]]
        return order[0], 1.0 if not near or near[0] == 0 else near[0]
    weights = [math.exp((values[t] - values[order[0]]) / draw.temperature) for t in order]
    weights = weights[: draw.top_k or None]
    sums = [mass / sum(weights) for mass in accumulate(weights)]
    kept = next((n for n, mass in enumerate(sums, 1) if mass >= draw.top_p), len(sums))
    distances = [abs(mass - draw.top_p) for mass in sums] if draw.top_p < 1 else []
    kept = min(kept, sum(weight >= draw.min_p for weight in weights))
    distances += [abs(weight - draw.min_p) for weight in weights] if draw.min_p else []
    sums = [mass / sums[kept - 1] for mass in sums[:kept]]
    distances += [abs(mass - draw.uniform) for mass in sums[:-1]]
    place = sum(mass <= draw.uniform for mass in sums)
    return order[min(place, kept - 1)], min([1.0, *distances])


@pytest.mark.parametrize(
    "kept",
    [
        {"top_p": 0.9},
        {"top_k": 30},
        {"min_p": 0.1},
        {"temperature": 1.5},
        {"top_k": 30, "top_p": 0.8, "min_p": 0.02, "temperature": 0.7},
    ],
)
def test_draws_follow_the_distribution(kept: dict[str, float]) -> None:
    vocabulary, count = 100, 4_000
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0))
    few = [draw(uniform=uniform(1, index), **kept) for index in range(count)]
    drawn = Counter(token for at in range(0, count, 1000) for token in tokens(
        logits, *few[at : at + 1000]
    ))  # fmt: skip

    weights = torch.softmax(logits[0].double() / kept.get("temperature", 1.0), -1)
    ordered, order = weights.sort(descending=True)
    ordered = ordered[: int(kept.get("top_k", vocabulary))]
    ordered /= ordered.sum()
    is_kept = (ordered.cumsum(0) - ordered < kept.get("top_p", 1.0)) & (
        ordered >= kept.get("min_p", 0.0) * ordered[0]
    )
    expected = ordered[is_kept] / ordered[is_kept].sum() * count
    observed = torch.tensor([drawn[token] for token in order[: len(expected)].tolist()])
    assert observed.sum() == count
    large = expected >= 5
    chi_square = float(((observed - expected).square() / expected)[large].sum())
    freedom = int(large.sum()) - 1
    assert freedom > 5 and chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_each_row_is_chosen_alone() -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 300).bfloat16().float()
    masks = mask_of(*range(0, 300, 7), vocabulary=300)
    rows = [
        Row(draw(uniform=0.3), num_logprobs=2),
        Row(greedy()),
        Row(draw(uniform=0.99, temperature=2.0, mask=0)),
        Row(penalised(occurring([1], [2, 3]), frequency=2.0)),
        Row(greedy(), num_logprobs=0),
        Row(draw(uniform=0.999)),
    ]
    together = sample(KERNELS, logits, rows, masks)
    for row in range(6):
        alone = sample(KERNELS, logits[row : row + 1], [rows[row]], masks)[0]
        assert repr(alone) == repr(together[row])


def test_logprobs_are_natural_logarithms_of_the_models_own_probabilities() -> None:
    logits = logits_of(0.2, 0.5, 0.3)
    asked = draw(uniform=0.999, temperature=7.0, bias=Bias([(0, 9.0), (1, -math.inf)]))
    choice = sample(KERNELS, logits, [Row(asked, num_logprobs=2)])[0]
    assert isinstance(choice, Choice)
    assert choice.token_id == 2
    assert choice.logprob == pytest.approx(math.log(0.3))
    assert [token for token, _ in choice.top] == [1, 2]
    assert [logprob for _, logprob in choice.top] == pytest.approx([math.log(0.5), math.log(0.3)])


def test_each_row_gets_as_many_logprobs_as_it_asks_for() -> None:
    logits = torch.cat([logits_of(0.5, 0.5), logits_of(0.1, 0.9)]).repeat(2, 1)
    rows = [Row(greedy(), 20), Row(greedy(), 1), Row(greedy()), Row(greedy(), 0)]
    choices = sample(KERNELS, logits, rows)
    assert [[token for token, _ in each.top] for each in choices if isinstance(each, Choice)] == [
        *([0, 1], [1], [], [])
    ]


def test_no_rows_give_no_choices() -> None:
    assert sample(KERNELS, torch.empty(0, 10), []) == []


def test_a_row_without_a_choice_has_no_logprobs() -> None:
    logits = torch.full((1, 4), math.nan)
    assert sample(KERNELS, logits, [Row(greedy(), 3)]) == [Unchosen.NOT_FINITE]


def sampler(prompt: Sequence[int] = (), *, ends: Sequence[int] = (), **asked: object) -> Sampler:
    return Sampler(
        SamplingParams(99, **asked),  # type: ignore[arg-type]
        seed=7,
        prompt_token_ids=prompt,
        end_token_ids=frozenset(ends),
    )


def test_a_guessed_beginning_gives_the_draw_that_will_come() -> None:
    asked = {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "min_tokens": 3}
    ahead, behind = (sampler([1, 2], ends=[0], **asked) for _ in range(2))
    behind.add(4)
    ahead.add(4)
    ahead.add(1)
    ahead.add(5)

    drafted, plain = behind.draw([1, 5]), ahead.draw()
    assert drafted.uniform == plain.uniform == uniform(7, 3) != behind.draw().uniform
    assert drafted.bias is plain.bias is None and behind.draw([1]).bias is not None
    assert drafted.penalties is not None and plain.penalties is not None
    assert drafted.penalties.occurred.token_ids == plain.penalties.occurred.token_ids
    assert drafted.penalties.occurred.counts == plain.penalties.occurred.counts
    assert behind.draw().penalties.occurred.token_ids.tolist() == [1, 2, 4]  # type: ignore[union-attr]


def test_end_tokens_are_forbidden_until_the_least_number_is_reached() -> None:
    asked = sampler(ends=[0, 2], temperature=0, min_tokens=2, logit_bias=((2, 50.0), (1, -3.0)))
    logits = torch.tensor([[9.0, 1.0, 5.0, -1.5]])
    drawn = []
    for _ in range(3):
        drawn += tokens(logits, asked.draw())
        asked.add(drawn[-1])
    assert drawn == [3, 3, 2]  # -1.5 is over 1.0 - 3.0


def test_what_changes_nothing_is_left_out() -> None:
    plain = sampler([1, 2]).draw()
    assert (plain.bias, plain.penalties, plain.mask) == (None, None, None)
    assert sampler(temperature=0).draw().uniform == 0


def test_uniform_numbers_depend_on_seed_and_place_alone() -> None:
    numbers = [uniform(3, index) for index in range(1000)]
    assert numbers == [uniform(3, index) for index in range(1000)]
    assert uniform(4, 0) != numbers[0] and uniform(-(1 << 63), 0) != numbers[0]
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 1000 - 0.5) < 0.05


@native
def test_the_native_operators_refuse_what_would_lead_out_of_their_rows() -> None:
    logits = torch.zeros(1, 40)
    masks = mask_of(1, vocabulary=40)
    for asked in (
        draw(bias=Bias([(40, 1.0)])),
        penalised(occurring([-1])),
        draw(mask=1),
    ):
        with pytest.raises(RuntimeError, match="not below"):
            native_sampling.choose(logits, [asked], masks)
    with pytest.raises(RuntimeError, match="words"):
        native_sampling.choose(logits, [draw(mask=0)], masks[:, :1])
    for row, token in ((1, 0), (0, 40)):
        with pytest.raises(RuntimeError, match="none of the logits"):
            native_sampling.log_probabilities(logits, [row], [token], 1)
