import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import SourceInvalid
from infra.sources.sources import Sources, ThreadedResolver
from tests.sources.conftest import write
from tests.sources.models import model_files


def test_the_scheme_chooses_the_source(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", model_files())
    sources = Sources()

    resolved, _ = asyncio.run(ThreadedResolver(sources).resolve(folder.as_uri()))

    assert sources.fetch(resolved, tmp_path, lambda fraction: None) == folder


@pytest.mark.parametrize("uri", ["", "http://x", "ftp://x/y", "x", "gs://b/p"])
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(SourceInvalid, match="none of file://, hf://, s3:// and oci://"):
        Sources().resolve(uri)


def test_no_client_library_is_loaded_before_it_is_needed() -> None:
    program = (
        "import sys; from infra.sources.sources import Sources; Sources();"
        "print(*{'boto3', 'huggingface_hub'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)

    assert done.stdout.strip() == b""
