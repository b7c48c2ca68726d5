import threading
from pathlib import Path

import pytest

from infra.errors import PlatformError, SourceInvalid, SourceUnavailable
from infra.sources.fetched import FetchedSource
from infra.sources.hub import HubSource
from infra.sources.staging import DIGESTS_SUFFIX
from tests.sources.conftest import IMPATIENT, NUM_CHUNKS, Contents
from tests.sources.hub_standin import HubStandin
from tests.sources.models import WEIGHTS, git_sha1, model_files, sha256, sharded

URI = "hf://org/model@main"


@pytest.fixture
def source(hub: HubStandin) -> FetchedSource:
    hub.repositories["org/model"] = model_files()
    return FetchedSource(HubSource(hub.url, patience=IMPATIENT))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub waits for seconds between its tries."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def silent(fraction: float) -> None:
    """Hears progress and says nothing."""


def test_a_branch_is_pinned_to_its_commit_and_files_to_their_blobs(
    hub: HubStandin, source: FetchedSource
) -> None:
    resolved, _ = source.resolve(URI)

    digests = {file.path: file.digest for file in resolved.files}
    assert resolved.uri == f"hf://org/model@{hub.commit('org/model')}"
    assert digests["model.safetensors"] == f"sha256:{sha256(WEIGHTS)}"
    assert digests["config.json"] == f"git-sha1:{git_sha1(model_files()['config.json'])}"


def test_resolving_reads_config_and_tokenizer_and_no_weights(
    hub: HubStandin, source: FetchedSource
) -> None:
    source.resolve(URI)

    assert not [request for request in hub.requests if "safetensors" in request]


def test_no_revision_means_the_default_branch(hub: HubStandin, source: FetchedSource) -> None:
    assert source.resolve("hf://org/model")[0] == source.resolve(URI)[0]


def test_a_pinned_commit_is_fetched_although_the_branch_moved_on(
    hub: HubStandin, source: FetchedSource, tmp_path: Path
) -> None:
    resolved, _ = source.resolve(URI)
    folder = source.fetch(resolved, tmp_path, silent)
    hub.repositories["org/model"] = model_files(model__safetensors=WEIGHTS[::-1])

    moved, _ = source.resolve(URI)

    assert source.fetch(resolved, tmp_path, silent) == folder
    assert source.fetch(moved, tmp_path, silent) != folder


def test_only_the_models_files_stay_in_the_cache(
    hub: HubStandin, source: FetchedSource, tmp_path: Path, contents: Contents
) -> None:
    resolved, _ = source.resolve(URI)

    folder = source.fetch(resolved, tmp_path, silent)

    assert contents(folder).keys() == {file.path for file in resolved.files}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hf-home") == [
        folder.name,
        f"{folder.name}.lock",
        f"{folder.name}{DIGESTS_SUFFIX}",
    ]


def test_a_dropped_line_is_resumed_where_it_broke(
    hub: HubStandin,
    source: FetchedSource,
    tmp_path: Path,
    contents: Contents,
    small_chunks: None,
) -> None:
    resolved, _ = source.resolve(URI)
    hub.cuts["model.safetensors"] = 2
    heard: list[float] = []

    folder = source.fetch(resolved, tmp_path, heard.append)

    assert contents(folder)["model.safetensors"] == WEIGHTS
    assert hub.downloads()["model.safetensors"] == NUM_CHUNKS + 2
    assert len(heard) > 3


def test_a_line_that_keeps_dropping_leaves_nothing_partial_visible_and_keeps_what_was_whole(
    hub: HubStandin, source: FetchedSource, tmp_path: Path
) -> None:
    hub.repositories["org/model"] = sharded(3)
    resolved, _ = source.resolve(URI)
    folder = tmp_path / resolved.digest.removeprefix("sha256:")
    hub.cuts["model-00003-of-00003.safetensors"] = 1000
    with pytest.raises(SourceUnavailable, match="cannot download hf://org/model"):
        source.fetch(resolved, tmp_path, silent)
    assert not list(folder.glob("*.safetensors"))
    staged = folder.with_suffix(".partial")
    files = hub.repositories["org/model"]
    shards = {name for name in files if name.endswith(".safetensors") and "index" not in name}
    torn = {name for name in shards if (staged / name).read_bytes() != files[name]}
    hub.cuts.clear()
    hub.requests.clear()

    assert source.fetch(resolved, tmp_path, silent) == folder

    assert "model-00003-of-00003.safetensors" in torn
    assert hub.downloads() == dict.fromkeys(torn, 1), "on a slow machine another one is torn, too"


def test_damaged_bytes_are_refused_and_asked_for_again(
    hub: HubStandin, source: FetchedSource, tmp_path: Path
) -> None:
    resolved, _ = source.resolve(URI)
    hub.flips_bytes = True
    with pytest.raises(SourceUnavailable, match=r"model\.safetensors arrived damaged"):
        source.fetch(resolved, tmp_path, silent)
    hub.flips_bytes = False

    folder = source.fetch(resolved, tmp_path, silent)

    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_many_that_want_the_same_model_download_it_once(
    hub: HubStandin, source: FetchedSource, tmp_path: Path
) -> None:
    resolved, _ = source.resolve(URI)
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(source.fetch(resolved, tmp_path, silent)))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(folders)) == 1
    assert len(folders) == 4
    assert hub.downloads()["model.safetensors"] == 1


def test_a_file_missing_from_the_cache_is_fetched_again(
    source: FetchedSource, tmp_path: Path
) -> None:
    resolved, _ = source.resolve(URI)
    folder = source.fetch(resolved, tmp_path, silent)
    (folder / "model.safetensors").unlink()

    assert source.fetch(resolved, tmp_path, silent) == folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("uri", "error", "words"),
    [
        ("hf://org/nothing", SourceInvalid, "does not exist"),
        ("hf://org/model@no-such-branch", SourceInvalid, "does not exist"),
        ("hf://org", SourceInvalid, "is not hf://org/repo@revision"),
        ("hf://../..", SourceInvalid, "hf://../.."),
    ],
)
def test_what_does_not_exist_is_said_so(
    source: FetchedSource, uri: str, error: type[PlatformError], words: str
) -> None:
    with pytest.raises(error, match=words):
        source.resolve(uri)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, SourceUnavailable, r"denies access .*HTTP 401"),
        (403, SourceUnavailable, r"denies access .*HTTP 403"),
        (404, SourceInvalid, "does not exist"),
        (429, SourceUnavailable, "HTTP 429"),
        (500, SourceUnavailable, "HTTP 500"),
        (503, SourceUnavailable, "HTTP 503"),
    ],
)
@pytest.mark.parametrize("when", ["resolving", "downloading"])
def test_what_the_hub_answers_becomes_a_typed_error(
    hub: HubStandin,
    source: FetchedSource,
    tmp_path: Path,
    when: str,
    status: int,
    error: type[PlatformError],
    words: str,
) -> None:
    resolved, _ = source.resolve(URI)
    if when == "resolving":
        hub.status = status
    else:
        hub.download_status = status

    with pytest.raises(error, match=words):
        if when == "resolving":
            source.resolve(URI)
        else:
            source.fetch(resolved, tmp_path, silent)


def test_a_gated_model_opens_with_the_token(hub: HubStandin, source: FetchedSource) -> None:
    hub.token = "a-secret"
    with pytest.raises(SourceUnavailable) as caught:
        source.resolve(URI)

    resolved, _ = HubSource(hub.url, token="a-secret").resolve(URI)

    assert "HF_TOKEN" in (caught.value.hint or "")
    assert "a-secret" not in resolved.model_dump_json()


def test_a_hub_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="cannot download hf://org/model"):
        HubSource("http://127.0.0.1:9").resolve(URI)


def test_files_in_subfolders_are_no_part_of_the_model(
    hub: HubStandin, source: FetchedSource
) -> None:
    hub.repositories["org/model"]["onnx/config.json"] = b"{}"
    hub.repositories["org/model"]["../config.json"] = b"{}"

    resolved, _ = source.resolve(URI)

    assert all("/" not in file.path for file in resolved.files)
