"""What a client may ask of a model's traffic: checks that refuse what cannot be done, pure."""

from collections.abc import Mapping

from control_plane.deployments.record import Record
from infra.contracts.base import RevisionName
from infra.errors import Conflict, Invalid, RevisionNotFound


def check_percents(percents: Mapping[RevisionName, int]) -> None:
    """Raises Invalid unless they are shares of a hundred requests."""
    for revision, percent in percents.items():
        if not 0 <= percent <= 100:
            raise Invalid(f"{revision} cannot have {percent} % of the requests", param="traffic")
    if (total := sum(percents.values())) != 100:
        raise Invalid(
            f"the shares add up to {total} %, not to 100",
            hint="name every revision",
            param="traffic",
        )


def check_generation(record: Record, generation: int | None) -> None:
    """Raises Conflict where somebody has changed the model since that generation."""
    if generation is not None and generation != record.generation:
        raise Conflict(
            f"the traffic of {record.model} has changed since generation {generation}",
            hint="read it again",
            generation=record.generation,
        )


def number_of(record: Record, revision: RevisionName) -> int:
    """The number of a revision that is kept; raises RevisionNotFound."""
    model, _, number = revision.rpartition("@")
    if model == record.model and number.isascii() and number.isdecimal():
        found = int(number[:20])
        if found in record.digests and str(found) == number:
            return found
    raise RevisionNotFound(
        f"no revision {revision} is kept",
        hint=f"`platform revisions {record.model}` lists what is",
        revision=revision,
    )
