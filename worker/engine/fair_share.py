"""Whose turn it is: tokens computed for each tenant that has something in flight."""

from collections import Counter


class FairShare:
    """Who had fewest tokens computed goes first (Sheng et al. 2024, virtual token counter).

    A tenant that comes starts level with the one that had fewest: nobody saves up turns by staying
    away. One that has nothing in flight is forgotten.
    """

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._in_flight: Counter[str] = Counter()

    def enter(self, tenant: str) -> None:
        """One more sequence of this tenant is in flight."""
        if tenant not in self._tokens:
            self._tokens[tenant] = min(self._tokens.values(), default=0)
        self._in_flight[tenant] += 1

    def leave(self, tenant: str) -> None:
        self._in_flight[tenant] -= 1
        if not self._in_flight[tenant]:
            del self._in_flight[tenant], self._tokens[tenant]

    def charge(self, tenant: str, num_tokens: int) -> None:
        self._tokens[tenant] += num_tokens

    def tokens(self, tenant: str) -> int:
        return self._tokens[tenant]

    def check_integrity(self, tenants: Counter[str]) -> None:
        """Asserts that exactly these are in flight, so often."""
        assert self._in_flight == tenants and self._tokens.keys() == tenants.keys()
