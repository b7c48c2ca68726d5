"""The port that pins a model's source, and a table of sources that ships as its fake."""

from typing import Protocol

from infra.contracts.revision import ModelFacts, ResolvedSource
from infra.errors import SourceInvalid


class Resolver(Protocol):
    """Turns what the user wrote into content that can no longer change under us."""

    async def resolve(self, source: str) -> tuple[ResolvedSource, ModelFacts]:
        """Raises SourceInvalid, UnsupportedModel or SourceUnavailable; may be repeated."""
        ...


class KnownSources:
    """A resolver of sources it was given."""

    def __init__(self, sources: dict[str, tuple[ResolvedSource, ModelFacts]]) -> None:
        self.sources = sources

    async def resolve(self, source: str) -> tuple[ResolvedSource, ModelFacts]:
        try:
            return self.sources[source]
        except KeyError:
            raise SourceInvalid(f"{source} does not exist", source=source) from None
