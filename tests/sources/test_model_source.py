"""What every source promises, over all of them."""

from pathlib import Path

import pytest

from infra.contracts.revision import ModelFacts
from infra.errors import SourceInvalid
from tests.sources.conftest import Contents, World
from tests.sources.models import WEIGHTS, as_json, model_files, sharded

FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    context_tokens=128,
    vocabulary=4,
    weight_bytes=len(WEIGHTS),
    longest_token_bytes=7,
    splits_words=True,
)
NAMES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def test_a_model_is_described_by_the_files_it_needs(world: World) -> None:
    resolved, facts = world.source.resolve(world.put(model_files()))

    assert facts == FACTS
    assert [file.path for file in resolved.files] == NAMES
    assert [file.size for file in resolved.files] == [len(model_files()[name]) for name in NAMES]
    assert resolved.digest.startswith("sha256:")


def test_equal_content_has_an_equal_digest_and_other_content_another(world: World) -> None:
    first, _ = world.source.resolve(world.put(model_files()))
    again, _ = world.source.resolve(world.put(model_files()))
    changed = WEIGHTS[:-1] + b"x"

    other, _ = world.source.resolve(world.put(model_files(model__safetensors=changed)))

    assert first.digest == again.digest != other.digest


def test_files_beside_the_model_do_not_change_its_digest(world: World) -> None:
    first, _ = world.source.resolve(world.put(model_files(onnx__bin=None)))

    again, _ = world.source.resolve(world.put(model_files(onnx__bin=b"other")))

    assert [file.digest for file in first.files] == [file.digest for file in again.files]


def test_the_files_arrive_as_they_were_resolved(
    world: World, tmp_path: Path, contents: Contents
) -> None:
    resolved, _ = world.source.resolve(world.put(model_files()))
    heard: list[float] = []

    folder = world.source.fetch(resolved, tmp_path / "cache", heard.append)

    assert {name: contents(folder)[name] for name in NAMES} == {
        name: model_files()[name] for name in NAMES
    }
    assert heard == sorted(heard)
    assert heard[-1] == 1.0


def test_fetching_again_gives_the_same_folder(world: World, tmp_path: Path) -> None:
    resolved, _ = world.source.resolve(world.put(model_files()))
    first = world.source.fetch(resolved, tmp_path / "cache", lambda fraction: None)

    assert world.source.fetch(resolved, tmp_path / "cache", lambda fraction: None) == first


def test_weights_in_shards_are_all_taken(world: World, tmp_path: Path, contents: Contents) -> None:
    resolved, facts = world.source.resolve(world.put(sharded(3)))

    folder = world.source.fetch(resolved, tmp_path / "cache", lambda fraction: None)

    shards = {name for name in sharded(3) if name.endswith(".safetensors")}
    assert shards | {"model.safetensors.index.json"} <= set(contents(folder))
    assert facts.weight_bytes == sum(len(sharded(3)[name]) for name in shards)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (model_files(config__json=None), "no config.json"),
        (model_files(tokenizer__json=None), "no tokenizer.json"),
        (model_files(model__safetensors=None, onnx__bin=None), "no model.safetensors"),
        (model_files(model__safetensors=None), r"only pickled weights \(onnx.bin\)"),
        (model_files(config__json=b"{"), "config.json is not JSON"),
        (model_files(tokenizer__json=as_json([])), "tokenizer.json is not a JSON object"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    world: World, files: dict[str, bytes], words: str
) -> None:
    with pytest.raises(SourceInvalid, match=words):
        world.source.resolve(world.put(files))


def test_a_uri_of_nothing_is_refused(world: World) -> None:
    with pytest.raises(SourceInvalid):
        world.source.resolve(world.unknown())
