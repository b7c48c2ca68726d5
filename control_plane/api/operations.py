"""Routes for those who run the platform: health, readiness, metrics, the meaning of errors."""

import asyncio
from typing import Annotated, Literal

import structlog
from fastapi import APIRouter, Path, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from control_plane.api import problems
from control_plane.api.auth import Caller
from control_plane.api.services import ReadinessCheck, Services
from control_plane.api.views import Readiness
from infra.errors import NotFound, PlatformError, StoreUnavailable
from infra.metrics import CONTENT_TYPE

log = structlog.get_logger()

_CHECK_S = 2.0


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


def operations_router(services: Services) -> APIRouter:
    """The routes outside /v1 and /internal."""
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def health() -> Health:
        """Whether the process answers; needs no key."""
        return Health()

    @router.get("/readyz")
    async def readiness() -> Readiness:
        """Whether the platform should get traffic: its store answers and it leads; needs no key."""
        return Readiness(checks=await check_readiness(services))

    @router.get("/metrics", response_class=Response)
    async def metrics(caller: Caller) -> Response:
        """Counters and gauges of all models in the Prometheus text format; an admin's affair."""
        caller.require_admin()
        return Response(services.metrics.render(), headers={"content-type": CONTENT_TYPE})

    @router.get("/problems", response_class=HTMLResponse)
    async def list_problems() -> str:
        """Every kind of error."""
        return problems.index()

    @router.get("/problems/{slug}", response_class=HTMLResponse)
    async def explain_problem(slug: Annotated[str, Path(max_length=64)]) -> str:
        """What a kind of error means; every problem's `type` leads here."""
        page = problems.page(slug)
        if page is None:
            raise NotFound("there is no such kind of problem", hint="see /problems")
        return page

    return router


async def check_readiness(services: Services) -> list[str]:
    """What was checked; raises StoreUnavailable while the platform should get no traffic."""
    names = list(services.readiness)
    failures = await asyncio.gather(*(_failure(services.readiness[name]) for name in names))
    failed = {name: why for name, why in zip(names, failures, strict=True) if why is not None}
    if failed:
        name, why = next(iter(failed.items()))
        raise StoreUnavailable(f"not ready: {name}: {why}", checks=failed, retry_after_s=1)
    return names


async def _failure(check: ReadinessCheck) -> str | None:
    """Why a check fails; None when it passes."""
    try:
        async with asyncio.timeout(_CHECK_S):
            await check()
    except PlatformError as error:
        return error.detail
    except TimeoutError:
        return f"no answer within {_CHECK_S:g} s"
    except Exception:
        log.exception("readiness.check-failed")
        return "the check itself failed"
    return None
