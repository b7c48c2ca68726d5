"""Which addresses the registries that callers name may lead to."""

from collections.abc import Callable
from typing import Final

from infra.addresses import is_public
from infra.registry.connections import MayReach, anywhere
from infra.registry.reference import Reference

REACH_HINT: Final = "the operator may allow that: PLATFORM_IMAGE_SOURCES"


def lies_in(reference: Reference, places: frozenset[str]) -> bool:
    """Whether it is of one of the places, which are registries or repositories."""
    repository = f"{reference.host}/{reference.repository}/"
    return any(repository.startswith(f"{place.rstrip('/')}/") for place in places)


class Reach:
    """Whoever deploys must not ask by us what is in networks that only we reach: the registries and
    repositories in `named` are the operator's choice and lead anywhere, others to the internet,
    unless `may_be_private` says that callers may name what they like.
    """

    def __init__(
        self,
        named: frozenset[str] = frozenset(),
        *,
        may_be_private: Callable[[], bool] = lambda: False,
    ) -> None:
        self._named = named
        self._may_be_private = may_be_private

    def of(self, reference: Reference) -> MayReach:
        """What may be connected to for it, where connections are made."""
        return anywhere if lies_in(reference, self._named) or self._may_be_private() else is_public


ANYWHERE: Final = Reach(may_be_private=lambda: True)
"""For those of the operator, and for what was looked at when it was deployed."""
