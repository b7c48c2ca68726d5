"""Two processes that lead and follow do what one does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.test_embeddings import alone, embedding, run, vector_of
from tests.engine.tiny import greedy_alone, load_model, make_engine
from tests.parallel.test_followers import PROMPT, led
from worker.boot.followers import ProcessFollowers
from worker.engine.request import Pooling
from worker.models.led import LedModel

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

Pair = tuple[LedModel, ProcessFollowers]


@pytest.fixture(scope="module")
def pair(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with led(folder, tmp_path_factory.mktemp("packed")) as (model, followers, _):
        yield model, followers


def test_two_processes_write_what_one_does(folder: Path, pair: Pair) -> None:
    model, _ = pair
    assert greedy_alone(model, PROMPT, 30) == greedy_alone(load_model(folder), PROMPT, 30)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_two_processes_make_the_vector_that_one_does(
    folder: Path, pair: Pair, pooling: Pooling
) -> None:
    engine = make_engine(pair[0], pooling=pooling, token_budget=16)
    told = run(engine, [embedding("e", list(PROMPT))])["e"]

    expected = list(alone(load_model(folder), list(PROMPT), pooling))
    assert list(vector_of(told)) == pytest.approx(expected, abs=1e-5)


def test_ranks_sleep_give_their_memory_back_and_wake(pair: Pair) -> None:
    model, followers = pair
    before = greedy_alone(model, PROMPT, 30)
    for _ in range(3):
        model.to_host()
        followers.until_asleep()
        model.to_device()
        assert greedy_alone(model, PROMPT, 30) == before
