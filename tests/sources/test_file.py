import os
from pathlib import Path

import pytest

from infra.errors import SourceInvalid
from infra.sources.file import FileSource
from tests.sources.conftest import write
from tests.sources.models import WEIGHTS, model_files, sha256


def silent(fraction: float) -> None:
    """Hears progress and says nothing."""


def hub_cache(root: Path) -> Path:
    """A snapshot as huggingface_hub keeps it: links to blobs of the same repository."""
    repository = root / "models--org--chat"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name, content in model_files().items():
        (repository / "blobs" / sha256(content)).write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / sha256(content))
    return snapshot


def test_files_are_pinned_by_their_sha256(tmp_path: Path) -> None:
    folder = write(tmp_path / "my model %", model_files())

    resolved, _ = FileSource().resolve(folder.as_uri())

    digests = {file.path: file.digest for file in resolved.files}
    assert digests["model.safetensors"] == f"sha256:{sha256(WEIGHTS)}"
    assert resolved.uri == folder.as_uri()
    assert FileSource().fetch(resolved, tmp_path / "cache", silent) == folder
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("uri", ["file://{}", "file://localhost{}"])
def test_a_path_may_be_written_plainly(tmp_path: Path, uri: str) -> None:
    folder = write(tmp_path / "with space", model_files())

    resolved, _ = FileSource().resolve(uri.format(folder))

    assert resolved.uri == folder.as_uri()


def test_a_file_is_read_once_for_each_of_its_states(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", model_files())
    source = FileSource()
    first, _ = source.resolve(folder.as_uri())
    weights = folder / "model.safetensors"
    before = weights.stat()

    weights.write_bytes(WEIGHTS[::-1])
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    unseen, _ = source.resolve(folder.as_uri())
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    seen, _ = source.resolve(folder.as_uri())

    assert unseen.digest == first.digest  # size, inode and time are the same: not read
    assert seen.digest != first.digest


def test_a_touched_file_is_read_again_and_a_changed_one_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", model_files())
    source = FileSource()
    resolved, _ = source.resolve(folder.as_uri())

    os.utime(folder / "model.safetensors")
    assert source.fetch(resolved, tmp_path, silent) == folder

    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    with pytest.raises(SourceInvalid, match="has changed since") as caught:
        source.fetch(resolved, tmp_path, silent)
    assert caught.value.hint == "deploy the model again"


@pytest.mark.parametrize("change", ["shorter", "gone", "a pipe"])
def test_a_file_that_is_not_what_it_was_is_refused(tmp_path: Path, change: str) -> None:
    folder = write(tmp_path / "model", model_files())
    resolved, _ = FileSource().resolve(folder.as_uri())
    path = folder / "config.json"
    match change:
        case "shorter":
            path.write_bytes(b"{}")
        case "gone":
            path.unlink()
        case _:
            path.unlink()
            os.mkfifo(path)

    with pytest.raises(SourceInvalid, match=r"has changed|cannot be read"):
        FileSource().fetch(resolved, tmp_path, silent)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", model_files())
    (folder / "weights.data").write_bytes(WEIGHTS)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("weights.data")

    resolved, _ = FileSource().resolve(folder.as_uri())

    assert {file.path: file.size for file in resolved.files}["model.safetensors"] == len(WEIGHTS)


def test_links_of_the_hubs_own_cache_are_followed(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)

    resolved, _ = FileSource().resolve(snapshot.as_uri())

    assert FileSource().fetch(resolved, tmp_path, silent) == snapshot


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_links_that_lead_out_are_not_followed(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", model_files())
    secret = tmp_path / "secret"
    secret.write_bytes(model_files()[name])
    (folder / name).unlink()
    (folder / name).symlink_to(secret)

    with pytest.raises(SourceInvalid, match="outside the folder"):
        FileSource().resolve(folder.as_uri())


def test_links_out_of_a_hub_repository_are_not_followed(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    (tmp_path / "secret").write_bytes(b"{}")
    (snapshot / "tokenizer_config.json").unlink()
    (snapshot / "tokenizer_config.json").symlink_to(tmp_path / "secret")

    with pytest.raises(SourceInvalid, match="outside the folder"):
        FileSource().resolve(snapshot.as_uri())


@pytest.mark.parametrize("made", ["a pipe", "a folder", "a broken link", "a circle", "a device"])
def test_what_is_no_regular_file_counts_as_missing(tmp_path: Path, made: str) -> None:
    folder = write(tmp_path / "model", model_files(config__json=None))
    path = folder / "config.json"
    match made:
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a broken link":
            path.symlink_to("gone")
        case "a circle":
            path.symlink_to("config.json")
        case _:
            path.symlink_to("/dev/zero")

    with pytest.raises(SourceInvalid, match=r"no config\.json"):
        FileSource().resolve(folder.as_uri())


def test_a_folder_that_is_a_link_is_pinned_where_it_leads(tmp_path: Path) -> None:
    folder = write(tmp_path / "v1", model_files())
    (tmp_path / "latest").symlink_to("v1")

    resolved, _ = FileSource().resolve((tmp_path / "latest").as_uri())

    assert resolved.uri == folder.as_uri()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file:///no/such/folder", "No such file"),
        ("file://host/share", "is not file:///folder"),
        ("file://relative", "is not file:///folder"),
        ("file:///a%00b", "is not file:///folder"),
        ("file:///" + "a" * 300, "too long"),
        ("file:///dev/null", "is not a folder"),
    ],
)
def test_a_uri_that_names_no_folder_is_refused(uri: str, words: str) -> None:
    with pytest.raises(SourceInvalid, match=words):
        FileSource().resolve(uri)


def test_a_gguf_gets_a_hint_to_import_it(tmp_path: Path) -> None:
    (tmp_path / "chat.gguf").touch()

    with pytest.raises(SourceInvalid) as caught:
        FileSource().resolve((tmp_path / "chat.gguf").as_uri())

    assert caught.value.hint == f"platform models import {tmp_path}/chat.gguf FOLDER"
