"""A source elsewhere as one to read from here: out of the cache, or on its way into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.contracts.revision import ModelFacts, ResolvedSource
from infra.errors import SourceUnavailable
from infra.sources.port import (
    UNREACHED,
    Land,
    OnProgress,
    OpenedSource,
    Remote,
    RemoteSource,
    Share,
    unshared,
)
from infra.sources.staging import fetch
from infra.sources.stream import open_source


class FetchedSource:
    """See ModelSource. `share`: where else than at its origin a model may be found."""

    def __init__(self, source: RemoteSource, share: Share = unshared) -> None:
        self._source = source
        self._share = share

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        with _named(uri):
            return self._source.resolve(uri)

    def remote(self, resolved: ResolvedSource) -> Remote:
        """See RemoteSource."""
        return self._share(resolved, self._source.remote(resolved))

    def fetch(self, resolved: ResolvedSource, cache_dir: Path, on_progress: OnProgress) -> Path:
        with _named(resolved.uri):
            return fetch(resolved, cache_dir, self.remote(resolved), on_progress)

    def open(
        self,
        resolved: ResolvedSource,
        cache_dir: Path,
        land: Land,
        on_progress: OnProgress,
        *,
        is_shared: bool = False,
    ) -> OpenedSource:
        with _named(resolved.uri):
            remote = self.remote(resolved)
            return open_source(resolved, cache_dir, remote, land, on_progress, is_shared=is_shared)


@contextmanager
def _named(uri: str) -> Iterator[None]:
    """Whatever could not be had, the error says of which source, and what can be done."""
    try:
        yield
    except SourceUnavailable as error:
        if uri not in error.detail:
            error.detail = f"cannot read {uri}: {error.detail}"
        error.hint = error.hint or UNREACHED
        raise
