"""Every kind of source behind one door: the URI's scheme chooses."""

import asyncio
from pathlib import Path

from infra.contracts.revision import ModelFacts, ResolvedSource
from infra.errors import SourceInvalid
from infra.registry.reach import ANYWHERE, Reach
from infra.sources.fetched import FetchedSource
from infra.sources.file import FileSource
from infra.sources.hub import HubSource
from infra.sources.port import (
    Land,
    ModelSource,
    OnProgress,
    OpenedSource,
    Remote,
    Share,
    unshared,
)
from infra.sources.registry import RegistrySource
from infra.sources.s3 import S3Source


class Sources:
    """A ModelSource for all schemes; endpoints are for stand-ins of the hub and of S3."""

    def __init__(
        self,
        *,
        hub_endpoint: str | None = None,
        hub_token: str | None = None,
        s3_endpoint: str | None = None,
        plain_http: frozenset[str] = frozenset(),
        reach: Reach = ANYWHERE,
        share: Share = unshared,
    ) -> None:
        """`plain_http`: registries without TLS, as `host:port`. `reach`: where registries that
        callers name may lead. `share`: where else than at its origin a model may be found.
        """
        self._remote = {
            "hf": FetchedSource(HubSource(hub_endpoint, hub_token), share),
            "s3": FetchedSource(S3Source(s3_endpoint), share),
            "oci": FetchedSource(RegistrySource(plain_http=plain_http, reach=reach), share),
        }
        self._by_scheme: dict[str, ModelSource] = {"file": FileSource(), **self._remote}

    def for_uri(self, uri: str) -> ModelSource:
        """Raises SourceInvalid for schemes that nobody knows."""
        source = self._by_scheme.get(uri.partition(":")[0])
        if source is None:
            raise SourceInvalid(f"{uri[:200]} is none of file://, hf://, s3:// and oci://")
        return source

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        return self.for_uri(uri).resolve(uri)

    def fetch(self, resolved: ResolvedSource, cache_dir: Path, on_progress: OnProgress) -> Path:
        return self.for_uri(resolved.uri).fetch(resolved, cache_dir, on_progress)

    def open(
        self,
        resolved: ResolvedSource,
        cache_dir: Path,
        land: Land,
        on_progress: OnProgress,
        *,
        is_shared: bool = False,
    ) -> OpenedSource:
        source = self.for_uri(resolved.uri)
        return source.open(resolved, cache_dir, land, on_progress, is_shared=is_shared)

    def remote(self, resolved: ResolvedSource) -> Remote:
        """Raises SourceInvalid for what is on this machine, and for what nobody knows."""
        source = self._remote.get(resolved.uri.partition(":")[0])
        if source is None:
            raise SourceInvalid(f"{resolved.uri[:200]} is none of hf://, s3:// and oci://")
        return source.remote(resolved)


class ThreadedResolver:
    """Resolves in a thread, for callers on an event loop."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source

    async def resolve(self, source: str) -> tuple[ResolvedSource, ModelFacts]:
        """As ModelSource.resolve."""
        return await asyncio.to_thread(self._source.resolve, source)
