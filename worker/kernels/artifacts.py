"""Where what torch compiles for a model is kept from one cold start to the next."""

import hashlib
import os
from pathlib import Path


def artifacts_folder(cache_dir: Path, *, source_digest: str, device: str, version: str) -> Path:
    """Of one model on one kind of device by one version of torch; in the node's cache."""
    key = "\n".join((source_digest, device, version))
    return cache_dir / "compiled" / hashlib.sha256(key.encode()).hexdigest()[:32]


def keep_artifacts_in(folder: Path) -> None:
    """Torch compiles into that folder from now on, in this process and in those it starts.

    It trusts what it finds there, so nobody else may write it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # noqa: TID251 - torch listens here only
