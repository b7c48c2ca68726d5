"""Routes of jobs, a tenant's own or to an admin everybody's: list, show, fetch, cancel, redrive."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from control_plane.api import problems
from control_plane.api.auth import Caller
from control_plane.api.services import Services
from control_plane.tenancy.identity import Identity
from infra.contracts.base import ModelName
from infra.contracts.job import JobList, JobState, JobStatus
from infra.contracts.tenancy import Tenant, TenantName

Id = Annotated[str, Path(max_length=64)]


def jobs_router(services: Services) -> APIRouter:
    """The routes below /v1/jobs."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    jobs = services.jobs

    @router.get("")
    async def list_jobs(
        caller: Caller,
        model: Annotated[ModelName | None, Query(max_length=256)] = None,
        state: JobState | None = None,
        tenant: Annotated[Tenant | None, Query()] = None,
        after: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> JobList:
        """Jobs, newest first; `next` of a page goes into `after` of the next one.

        A page with a filter may be short, or empty, and still have a `next`. An admin may ask for
        another `tenant`'s.
        """
        whose = tenant or caller.tenant
        if whose != caller.tenant:
            caller.require_admin()
        page = await jobs.page(tenant=whose, model=model, state=state, after=after, count=limit)
        return JobList(data=tuple(job.status() for job in page.jobs), next=page.next)

    @router.get("/{job_id}")
    async def show_job(job_id: Id, caller: Caller) -> JobStatus:
        """How a job stands."""
        return (await jobs.get(job_id, tenant=_seen_by(caller))).status()

    @router.get("/{job_id}/result", response_class=Response)
    async def read_result(job_id: Id, caller: Caller) -> Response:
        """What the model answered, as it answered it; of a failed job, the problem."""
        job, body = await jobs.answer(job_id, tenant=_seen_by(caller))
        if job.answer is None:
            return problems.of_job(job)
        return Response(body, job.answer.status, {"content-type": job.answer.content_type})

    @router.delete("/{job_id}")
    async def cancel_job(job_id: Id, caller: Caller) -> JobStatus:
        """Ends a job that waits or runs; it may be repeated."""
        return (await jobs.cancel(job_id, tenant=_seen_by(caller))).status()

    @router.post("/{job_id}/redrive", status_code=202)
    async def redrive_job(job_id: Id, caller: Caller, response: Response) -> JobStatus:
        """Queues a failed job again, with all its attempts and as much time as it had."""
        response.headers["Location"] = f"/v1/jobs/{job_id}"
        return (await jobs.redrive(job_id, tenant=_seen_by(caller))).status()

    return router


def _seen_by(caller: Identity) -> TenantName | None:
    """Whose jobs there are for a caller; None is everybody's."""
    return None if caller.is_admin else caller.tenant
