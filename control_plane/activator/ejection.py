"""How long a replica that fails requests gets none, as a pure function."""

FIRST_REST_S = 1.0
_LONGEST_REST_S = 30.0
_MOST_DOUBLINGS = 10


def rest_s(failures: int) -> float:
    """Seconds of rest after so many failures in a row, from 1 s doubled up to 30 s."""
    doubled: int = 1 << min(failures - 1, _MOST_DOUBLINGS)
    return min(_LONGEST_REST_S, FIRST_REST_S * doubled)
