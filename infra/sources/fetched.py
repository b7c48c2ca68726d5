"""A source elsewhere as one to read from here: out of the cache, or on its way into it."""

from pathlib import Path

from infra.contracts.revision import ModelFacts, ResolvedSource
from infra.sources.port import (
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
        return self._source.resolve(uri)

    def remote(self, resolved: ResolvedSource) -> Remote:
        """See RemoteSource."""
        return self._share(resolved, self._source.remote(resolved))

    def fetch(self, resolved: ResolvedSource, cache_dir: Path, on_progress: OnProgress) -> Path:
        return fetch(resolved, cache_dir, self.remote(resolved), on_progress)

    def open(
        self, resolved: ResolvedSource, cache_dir: Path, land: Land, on_progress: OnProgress
    ) -> OpenedSource:
        return open_source(resolved, cache_dir, self.remote(resolved), land, on_progress)
