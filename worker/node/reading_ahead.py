"""Which sources standby workers read ahead."""

from infra.contracts.revision import ResolvedSource

MOST_PREPARED = 8  # sources whose small files standby workers read ahead


class ReadingAhead:
    """What is likely to be asked for next, and what climbed here."""

    def __init__(self) -> None:
        self.sources: tuple[ResolvedSource, ...] = ()
        self._likely: tuple[ResolvedSource, ...] = ()
        self._at_hand: dict[str, ResolvedSource] = {}  # climbed here, by digest, oldest first

    def expect(self, likely: tuple[ResolvedSource, ...]) -> bool:
        """What the control plane expects; whether `sources` changed."""
        self._likely = likely
        return self._changed()

    def remember(self, source: ResolvedSource) -> bool:
        """Its files are on this machine and read without fetching; whether `sources` changed."""
        self._at_hand.pop(source.digest, None)
        self._at_hand[source.digest] = source
        while len(self._at_hand) > MOST_PREPARED:
            del self._at_hand[next(iter(self._at_hand))]
        return self._changed()

    def _changed(self) -> bool:
        before = self.sources
        self.sources = worth_preparing(self._likely, tuple(self._at_hand.values()))
        return self.sources != before


def worth_preparing(
    likely: tuple[ResolvedSource, ...], at_hand: tuple[ResolvedSource, ...]
) -> tuple[ResolvedSource, ...]:
    """Sources that standby workers can read without fetching: likely ones first, then the latest.

    `at_hand` is in the order in which they climbed here.
    """
    here = {source.digest for source in at_hand}
    readable = [s for s in likely if s.digest in here or s.uri.startswith("file:")]
    chosen = {source.digest: source for source in (*readable, *reversed(at_hand))}
    return tuple(chosen.values())[:MOST_PREPARED]
