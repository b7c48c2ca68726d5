"""Books what jobs have used in the names of their tenants."""

from control_plane.queue.executor import Answered
from control_plane.queue.job import Job
from control_plane.tenancy.quotas import Quotas
from control_plane.tenancy.usage import UsageLedger, Used


class JobBill:
    """Told of each job that was answered, once."""

    def __init__(self, quotas: Quotas, usage: UsageLedger) -> None:
        self._quotas = quotas
        self._usage = usage

    def __call__(self, job: Job, answered: Answered) -> None:
        used = Used(1, answered.prompt_tokens, answered.completion_tokens)
        self._quotas.charge(job.tenant, used.tokens)
        self._usage.count(job.tenant, job.model, used)
