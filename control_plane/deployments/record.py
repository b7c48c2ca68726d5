"""Which revisions of a model are kept, and how its requests are split: the changes, pure."""

from collections.abc import Mapping

from pydantic import Field

from infra.contracts.base import Contract, ModelName

MOST_REVISIONS = 20  # kept of a model


class Record(Contract):
    """All of a model's releases but what is in the revisions; a change gives a new one.

    A change that changes nothing gives the same record, any other the next generation. A model
    that was deleted leaves a record without revisions: numbers are never used twice.
    """

    model: ModelName
    generation: int = 0
    last_number: int = 0
    digests: Mapping[int, str] = Field(default={}, description="Of every revision that is kept.")
    percents: Mapping[int, int] = Field(default={}, description="Of every revision in traffic.")
    settled: tuple[int, ...] = Field(
        default=(), description="Revisions that once had all requests, the last one first."
    )

    @property
    def is_deployed(self) -> bool:
        return bool(self.percents)

    @property
    def previous(self) -> int | None:
        """The revision that last had all requests, if not the one that has them now."""
        return next((it for it in self.settled if self.percents.get(it) != 100), None)

    def number_of(self, digest: str) -> int | None:
        """The revision of that content."""
        return next((number for number, it in self.digests.items() if it == digest), None)

    def published(self, digest: str, *, takes_traffic: bool) -> "Record":
        """With a revision of that content, which gets all requests or, as yet, none.

        Content that is kept keeps its number.
        """
        number = self.number_of(digest) or self.last_number + 1
        after = self if number in self.digests else self._with_new(number, digest)
        return self._next(after._split({number: 100}) if takes_traffic else after)

    def split(self, percents: Mapping[int, int]) -> "Record":
        """With the requests split so; percents of kept revisions that add up to 100."""
        in_traffic = {number: percent for number, percent in percents.items() if percent}
        assert sum(in_traffic.values()) == 100 and in_traffic.keys() <= self.digests.keys()
        return self._next(self._split(in_traffic))

    def retired(self) -> "Record":
        """Without any revision."""
        return self._next(self._with(digests={}, percents={}, settled=()))

    def _with_new(self, number: int, digest: str) -> "Record":
        """The oldest beyond MOST_REVISIONS go, but not what a rollback goes to."""
        digests = {**self.digests, number: digest}
        spare = sorted(digests.keys() - {number, *self.percents, *self.settled[:2]})
        dropped = set(spare[: max(0, len(digests) - MOST_REVISIONS)])
        return self._with(
            last_number=number,
            digests={it: digests[it] for it in digests if it not in dropped},
            settled=tuple(it for it in self.settled if it not in dropped),
        )

    def _split(self, percents: Mapping[int, int]) -> "Record":
        if len(percents) > 1:
            return self._with(percents=percents)
        [now] = percents
        others = (number for number in self.settled if number != now)
        return self._with(percents=percents, settled=(now, *others))

    def _with(self, **changes: object) -> "Record":
        return self.model_copy(update=changes)

    def _next(self, after: "Record") -> "Record":
        return self if after == self else after._with(generation=self.generation + 1)
