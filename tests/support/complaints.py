"""What a process's log, as people read it, says above info."""

import re

_COMPLAINT = re.compile(r"\[(warning|error|critical) *\]|Traceback")


def complaints(log: str) -> list[str]:
    """Those of its lines."""
    return [line for line in log.splitlines() if _COMPLAINT.search(line)]
