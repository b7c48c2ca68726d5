"""How long the client of a generation request will wait, as its headers say."""

import re
from collections.abc import Mapping
from typing import Final

from control_plane.activator.call import FOR_EVER, Patience
from infra.errors import Invalid

_SECONDS: Final = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,6})?")
_HELD: Final = "Firstlight-Wait-Timeout"
_COLD_START: Final = "Firstlight-Cold-Start-Timeout"
_EXECUTION: Final = "Firstlight-Timeout"


def patience_of(headers: Mapping[bytes, bytes]) -> Patience:
    """What the headers ask for; raises Invalid."""
    held = headers.get(b"firstlight-wait-timeout")
    cold_start = headers.get(b"firstlight-cold-start-timeout")
    execution = headers.get(b"firstlight-timeout")
    if held is None and cold_start is None and execution is None:
        return FOR_EVER
    return Patience(
        held_s=_seconds(_HELD, held, FOR_EVER.held_s),
        cold_start_s=_seconds(_COLD_START, cold_start, FOR_EVER.cold_start_s),
        execution_s=_seconds(_EXECUTION, execution, FOR_EVER.execution_s),
    )


def _seconds(name: str, value: bytes | None, otherwise: float) -> float:
    if value is None:
        return otherwise
    seconds = float(value) if _SECONDS.fullmatch(value) else 0.0
    if seconds <= 0:
        raise Invalid(f"the header {name} is not a positive number of seconds", param=name)
    return seconds
