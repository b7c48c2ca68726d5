"""A source of models that a test describes: the port's fake."""

from pathlib import Path

from infra.contracts.revision import ModelFacts, ResolvedSource
from infra.errors import SourceInvalid
from infra.sources.port import Land, OnProgress, OpenedSource


class MemorySource:
    """Knows what it was told: what a URI resolves to and the folder that holds it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[ResolvedSource, ModelFacts, Path]] = {}

    def add(self, uri: str, resolved: ResolvedSource, facts: ModelFacts, folder: Path) -> None:
        """From now on `uri` can be resolved, and what it resolves to fetched."""
        self._known[uri] = (resolved, facts, folder)

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        if uri not in self._known:
            raise SourceInvalid(f"{uri} does not exist")
        resolved, facts, _ = self._known[uri]
        return resolved, facts

    def fetch(self, resolved: ResolvedSource, cache_dir: Path, on_progress: OnProgress) -> Path:
        for known, _, folder in self._known.values():
            if known.digest == resolved.digest:
                on_progress(1.0)
                return folder
        raise SourceInvalid(f"{resolved.uri} does not exist")

    def open(
        self,
        resolved: ResolvedSource,
        cache_dir: Path,
        land: Land,
        on_progress: OnProgress,
        *,
        is_shared: bool = False,
    ) -> OpenedSource:
        return OpenedSource(self.fetch(resolved, cache_dir, on_progress), "memory")
