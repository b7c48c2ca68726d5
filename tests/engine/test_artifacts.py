"""What torch compiles lies in the node's cache, by model, device and version."""

from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir

from worker.kernels.artifacts import artifacts_folder, keep_artifacts_in


def folder(root: Path, **changes: str) -> Path:
    facts = {"source_digest": "sha256:a", "device": "NVIDIA L4", "version": "2.13.0+cu130"}
    return artifacts_folder(root, **(facts | changes))


def test_another_model_device_or_version_has_another_folder(tmp_path: Path) -> None:
    folders = {
        folder(tmp_path),
        folder(tmp_path, source_digest="sha256:b"),
        folder(tmp_path, device="../../NVIDIA H100 80GB HBM3"),
        folder(tmp_path, version="2.14.0+cu130"),
    }
    assert len(folders) == 4
    assert {each.parent for each in folders} == {tmp_path / "compiled"}
    assert folder(tmp_path) == folder(tmp_path)


def test_torch_compiles_into_a_folder_of_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_artifacts_in(folder(tmp_path))
    assert cache_dir() == str(folder(tmp_path))
    assert folder(tmp_path).stat().st_mode & 0o777 == 0o700
    keep_artifacts_in(folder(tmp_path))  # which is there already
