"""How many jobs may be at replicas, as a pure function."""


def room_for_jobs(*, permits: int, concurrency: int, running: int) -> int:
    """How many more jobs may begin.

    `permits` is what the model's ready replicas take at once, `concurrency` the requests that run
    or wait, `running` jobs included. Jobs fill what others leave, and one more waits, so that
    there is a demand to scale up for; one job always gets its turn, also of a model at zero,
    which it wakes.
    """
    others = max(0, concurrency - running)
    return max(0, max(1, permits + 1 - others) - running)
