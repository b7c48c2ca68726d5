"""Books what jobs have used in the names of their tenants."""

from control_plane.queue.executor import Answered
from control_plane.queue.job import Job
from control_plane.tenancy.quotas import Quotas
from control_plane.tenancy.usage import UsageLedger


class JobBill:
    """Told of each job that was answered, once."""

    def __init__(self, quotas: Quotas, usage: UsageLedger) -> None:
        self._quotas = quotas
        self._usage = usage

    def __call__(self, job: Job, answered: Answered) -> None:
        prompt, completion = answered.prompt_tokens, answered.completion_tokens
        self._quotas.charge(job.tenant, prompt + completion)
        self._usage.count(job.tenant, job.model, prompt, completion)
