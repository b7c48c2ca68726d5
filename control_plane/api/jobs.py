"""Routes of a tenant's jobs: list, show, fetch the result, cancel, redrive."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from control_plane.api import problems
from control_plane.api.auth import Caller
from control_plane.api.services import Services
from infra.contracts.base import ModelName
from infra.contracts.job import JobList, JobState, JobStatus

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
        after: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> JobList:
        """Jobs, newest first; `next` of a page goes into `after` of the next one.

        A page with a filter may be short, or empty, and still have a `next`.
        """
        page = await jobs.page(
            tenant=caller.tenant, model=model, state=state, after=after, count=limit
        )
        return JobList(data=tuple(job.status() for job in page.jobs), next=page.next)

    @router.get("/{job_id}")
    async def show_job(job_id: Id, caller: Caller) -> JobStatus:
        """How a job stands."""
        return (await jobs.get(job_id, tenant=caller.tenant)).status()

    @router.get("/{job_id}/result", response_class=Response)
    async def read_result(job_id: Id, caller: Caller) -> Response:
        """What the model answered, as it answered it; of a failed job, the problem."""
        job, body = await jobs.answer(job_id, tenant=caller.tenant)
        if job.answer is None:
            return problems.of_job(job)
        return Response(body, job.answer.status, {"content-type": job.answer.content_type})

    @router.delete("/{job_id}")
    async def cancel_job(job_id: Id, caller: Caller) -> JobStatus:
        """Ends a job that waits or runs; it may be repeated."""
        return (await jobs.cancel(job_id, tenant=caller.tenant)).status()

    @router.post("/{job_id}/redrive", status_code=202)
    async def redrive_job(job_id: Id, caller: Caller, response: Response) -> JobStatus:
        """Queues a failed job again, with all its attempts and as much time as it had."""
        response.headers["Location"] = f"/v1/jobs/{job_id}"
        return (await jobs.redrive(job_id, tenant=caller.tenant)).status()

    return router
