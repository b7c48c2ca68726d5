"""What clients saw, and when the platform was not there to be seen."""

from dataclasses import dataclass, field
from enum import StrEnum

from infra.contracts.job import JobState

MOST_AWAITED_CALLS = 5  # the sixth comes 80 s after the fifth


class Ending(StrEnum):
    """How a request ended for its client."""

    ANSWERED = "answered"
    PROBLEM = "problem"  # a typed error, as a response
    EVENT = "error event"  # a typed error, as the last event of a stream
    LEFT = "left"  # the client did, on purpose
    UNREACHED = "unreached"  # the connection ended before any answer
    CUT = "cut"  # the connection ended within the answer, and the client can tell
    SILENT = "cut silently"  # the answer looks whole and is not
    WRONG = "wrong"  # not the answer to this request, or no typed error
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request; times are `time.monotonic` seconds."""

    kind: str
    began_at: float
    ended_at: float
    ending: Ending
    code: str = ""  # of a typed error
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Absence:
    """The platform's process was ended and had not come back; `is_sudden` where it was killed."""

    began_at: float
    ended_at: float
    is_sudden: bool


@dataclass
class JobSeen:
    """A job that was answered 202."""

    job_id: str
    question: int  # which of the questions it asks
    states: list[JobState] = field(default_factory=list)  # in the order they were seen
    is_cancelled: bool = False  # its cancel was confirmed
    result: str | None = None
    tokens: int = 0  # of its answer
    is_told: bool = False  # its end is to be told to a webhook
    webhook: str = ""  # what became of that
    webhook_calls: int = 0

    @property
    def is_done(self) -> bool:
        """It is over, and whom it concerns was told, or failed to hear it so often that the next
        call is minutes away."""
        if not (self.states and self.states[-1].is_over):
            return False
        was_tried = self.webhook_calls >= MOST_AWAITED_CALLS
        return not self.is_told or self.webhook in {"delivered", "given-up"} or was_tried


@dataclass
class Records:
    """All of a run; each list is appended to by its client and read when the run is over."""

    seen: list[Seen] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    jobs: dict[str, JobSeen] = field(default_factory=dict)
    ids_of_key: dict[str, set[str]] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)  # job and state, by webhooks
    billed_tokens: int = 0  # of all jobs, as the usage has it
    wrongs: list[str] = field(default_factory=list)  # what a watcher saw that must not be
