"""The port of model sources: pin what a URI names, then bring its files here."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from infra.contracts.revision import ModelFacts, ResolvedSource

OnProgress = Callable[[float], None]


class ModelSource(Protocol):
    """One kind of source; both methods block and may be called from any thread.

    Both raise SourceInvalid when what the URI names is missing, malformed or unsafe (trying again
    is useless) and SourceUnavailable when the source cannot be reached or refuses us.
    """

    def resolve(self, uri: str) -> tuple[ResolvedSource, ModelFacts]:
        """Pins the content and reads config and tokenizer, never the weights of a remote source.

        May be repeated: equal content gives an equal digest. Raises UnsupportedModel, too.
        """
        ...

    def fetch(self, resolved: ResolvedSource, cache_dir: Path, on_progress: OnProgress) -> Path:
        """The folder that holds exactly the resolved files, verified against their digests.

        May be repeated and called at once by many processes: one downloads, the others wait. A
        partial download is never visible and is resumed file by file. `on_progress` hears the
        fraction of bytes that are here.
        """
        ...
