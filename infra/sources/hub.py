"""Models of the Hugging Face Hub: `hf://org/repo@revision`, pinned to a commit."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from infra.contracts.revision import ModelFacts, ResolvedSource, SourceFile
from infra.errors import PlatformError, SourceInvalid, SourceUnavailable
from infra.sources.digests import content_digest
from infra.sources.http_ranges import HttpRanges, Location
from infra.sources.model_files import MAX_LISTED, checked_name, describe_model
from infra.sources.patience import PATIENT, Patience
from infra.sources.port import OnBytes, RangeReader, Remote

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

URI: Final = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>.+))?")
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S: Final = 20.0


class HubSource:
    """`endpoint` and `token` default to what huggingface_hub finds (HF_ENDPOINT, HF_TOKEN)."""

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | None = None,
        *,
        patience: Patience = PATIENT,
    ) -> None:
        self._endpoint = endpoint
        self._token = token
        self._patience = patience

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        from huggingface_hub import HfApi

        repository, revision = _parsed(uri)
        with _hub_errors(uri), TemporaryDirectory(prefix="firstlight-hub-") as scratch:
            info = HfApi(endpoint=self._endpoint, token=self._token).model_info(
                repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S
            )
            commit = info.sha or ""
            if not COMMIT.fullmatch(commit):
                raise SourceUnavailable(f"the hub names no commit for {uri}")
            siblings = _at_top(info.siblings or [])
            names, facts = describe_model(
                {name: sibling.size or 0 for name, sibling in siblings.items()},
                lambda name: self._download(repository, commit, name, Path(scratch)).read_bytes(),
            )
        files = tuple(_pinned(name, siblings[name]) for name in names)
        digest = content_digest(
            [f"hf {repository}", *(f"{file.path} {file.size} {file.digest}" for file in files)]
        )
        return ResolvedSource(uri=f"hf://{repository}@{commit}", digest=digest, files=files), facts

    def remote(self, resolved: ResolvedSource) -> Remote:
        repository, commit = _parsed(resolved.uri)

        def bring(file: SourceFile, path: Path, on_bytes: OnBytes) -> None:
            with _hub_errors(resolved.uri):
                self._download(repository, commit, file.path, path.parent, on_bytes)

        def locate(file: SourceFile, *, again: bool) -> Location:
            """A commit's file never changes; the hub redirects to where its bytes are now."""
            from huggingface_hub import hf_hub_url
            from huggingface_hub.utils._headers import build_hf_headers

            name = checked_name(file.path)
            url = hf_hub_url(repository, name, revision=commit, endpoint=self._endpoint)
            return Location(url, build_hf_headers(token=self._token))

        def open_reader() -> RangeReader:
            return HttpRanges(locate, self._patience)

        return Remote(bring, open_reader, self._patience, came_from=lambda: "hub")

    def _download(
        self,
        repository: str,
        commit: str | None,
        name: str,
        folder: Path,
        on_bytes: OnBytes = lambda count: None,
    ) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                repository,
                checked_name(name),
                revision=commit,
                local_dir=folder,
                endpoint=self._endpoint,
                token=self._token,
                etag_timeout=TIMEOUT_S,
                tqdm_class=_quiet_bar(on_bytes),
            )
        )


def _parsed(uri: str) -> tuple[str, str | None]:
    match = URI.fullmatch(uri)
    if match is None:
        raise SourceInvalid(f"{uri[:200]} is not hf://org/repo@revision")
    return match["repo"], match["revision"]


def _at_top(siblings: "list[RepoSibling]") -> "dict[str, RepoSibling]":
    """The files of the repository's top folder, where transformers looks for a model."""
    top = (sibling for sibling in siblings[:MAX_LISTED] if "/" not in sibling.rfilename)
    return {sibling.rfilename: sibling for sibling in top}


def _pinned(name: str, sibling: "RepoSibling") -> SourceFile:
    """Large files have their SHA-256 on record, small ones the name git gives their content."""
    if sibling.size is None or sibling.blob_id is None:
        raise SourceUnavailable(f"the hub says too little about {name}")
    if sibling.lfs is not None:
        return SourceFile(path=name, size=sibling.size, digest=f"sha256:{sibling.lfs.sha256}")
    return SourceFile(path=name, size=sibling.size, digest=f"git-sha1:{sibling.blob_id}")


def _quiet_bar(on_bytes: Callable[[int], None]) -> type[Any]:
    """What huggingface_hub takes for a progress bar: draws nothing, passes on what it is told."""

    class Bar:
        def __init__(self, *args: object, **options: object) -> None: ...

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, count: float | None = 1) -> None:
            on_bytes(int(count or 0))

        def close(self) -> None: ...

    return Bar


@contextmanager
def _hub_errors(uri: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except PlatformError:
        raise
    except HFValidationError as error:
        raise SourceInvalid(f"{uri}: {error}") from error
    except HfHubHTTPError as error:
        raise _from_status(uri, error.response.status_code) from error
    except Exception as error:  # transport errors belong to whichever HTTP library it uses
        status = _status_behind(error)
        if status is not None:
            raise _from_status(uri, status) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceUnavailable(f"cannot download {uri}: {reason}") from error


def _status_behind(error: BaseException) -> int | None:
    """The HTTP status that made huggingface_hub look into its cache instead."""
    cause = error.__cause__
    return getattr(getattr(cause, "response", None), "status_code", None)


def _from_status(uri: str, status: int) -> PlatformError:
    match status:
        case 401 | 403:
            return SourceUnavailable(
                f"the hub denies access to {uri} (HTTP {status})",
                hint="check its name; for a private or gated model set HF_TOKEN",
            )
        case 404:
            return SourceInvalid(f"{uri} does not exist", hint="check repository and revision")
        case _:
            return SourceUnavailable(f"the hub answers HTTP {status} for {uri}")
