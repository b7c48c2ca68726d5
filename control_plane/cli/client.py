"""The platform's HTTP API as calls, every failure as a CommandFailed."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from control_plane.cli.answers import (
    CONNECT_S,
    Answer,
    Stream,
    http_errors,
    listed,
    origin,
    parsed,
    raise_problem,
)
from control_plane.cli.sse import read_events
from infra.contracts.explanation import ModelExplanation
from infra.contracts.job import JobList, JobStatus
from infra.contracts.model_spec import ModelSpec
from infra.contracts.node import NodeStatus
from infra.contracts.release import RevisionStatus, TrafficStatus
from infra.contracts.revision import ModelStatus
from infra.contracts.stage import ColdStartReport
from infra.contracts.tenancy import (
    CreatedKey,
    KeyStatus,
    NewKey,
    TenantLimits,
    TenantStatus,
    UsageRow,
)
from infra.contracts.warming import WarmStatus

ANSWER_S = 30.0  # of a call that has nothing to wait for
_JOBS_A_PAGE = 100


class _ModelEntry(BaseModel):
    status: ModelStatus | None


class PlatformClient:
    """Blocks; one call at a time."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    @classmethod
    def connect(cls, url: str, *, api_key: str | None) -> "PlatformClient":
        """A client of the platform at `url`; nothing is sent yet."""
        headers = {"User-Agent": "firstlight-cli"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        http = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=not _is_here(url),  # no proxy knows this machine's own address
        )
        return cls(http)

    @property
    def url(self) -> str:
        return str(self._http.base_url).rstrip("/")

    @property
    def sends_key(self) -> bool:
        """Whether the platform's key was given."""
        return "Authorization" in self._http.headers

    def close(self) -> None:
        self._http.close()

    def deploy(
        self, spec: ModelSpec, *, takes_traffic: bool = True, is_now: bool = True
    ) -> ModelStatus:
        """Publishes the spec; hashing or finding its source may take long, so this waits.

        Unless `is_now`, it gets no requests yet where another revision serves them.
        """
        gently = "true" if is_now else "unless-served"
        content = self._call(
            "PUT",
            _model_path(spec.name),
            json=spec.model_dump(mode="json"),
            params={"traffic": gently if takes_traffic else "false"},
            timeout=None,
        )
        return parsed(ModelStatus, content)

    def revisions(self, name: str) -> list[RevisionStatus]:
        """Every revision of a model that is kept, the newest first."""
        content = self._call("GET", f"{_model_path(name)}/revisions")
        return listed(RevisionStatus, content)

    def traffic(self, name: str) -> TrafficStatus:
        return parsed(TrafficStatus, self._call("GET", f"{_model_path(name)}/traffic"))

    def split(
        self, name: str, percents: Mapping[str, int], *, generation: int | None = None
    ) -> TrafficStatus:
        """Splits a model's requests; percents by revision. With a generation, only if nobody has
        changed the model since."""
        path = f"{_model_path(name)}/traffic"
        asked = _given({"traffic": dict(percents), "generation": generation})
        return parsed(TrafficStatus, self._call("PUT", path, json=asked))

    def warm(self, name: str, revision: str, *, replicas: int) -> WarmStatus:
        """Has replicas of a revision ready before requests go there; to be repeated until then."""
        asked = {"revision": revision, "replicas": replicas}
        return parsed(WarmStatus, self._call("POST", f"{_model_path(name)}/warm", json=asked))

    def rollback(self, name: str, revision: str | None) -> TrafficStatus:
        """Sends all requests to a former revision; None takes the one before."""
        asked = _given({"revision": revision})
        path = f"{_model_path(name)}/rollback"
        return parsed(TrafficStatus, self._call("POST", path, json=asked))

    def status(self, name: str) -> ModelStatus:
        return parsed(ModelStatus, self._call("GET", _model_path(name)))

    def models(self) -> list[ModelStatus]:
        """Every model of the key's tenant, by name."""
        entries = listed(_ModelEntry, self._call("GET", "/v1/models"))
        own = (entry.status for entry in entries if entry.status is not None)
        return sorted(own, key=lambda status: status.name)

    def delete(self, name: str) -> None:
        self._call("DELETE", _model_path(name))

    def explain(self, name: str, *, last: int) -> ModelExplanation:
        """Why a model is where it is, with the last decisions."""
        content = self._call("GET", f"{_model_path(name)}/explain", params={"last": last})
        return parsed(ModelExplanation, content)

    def cold_starts(
        self, name: str, *, last: int | None = None, request_id: str | None = None
    ) -> list[ColdStartReport]:
        """Reports of cold requests, newest first."""
        asked = {"last": last, "request_id": request_id}
        content = self._call(
            "GET",
            f"{_model_path(name)}/coldstarts",
            params={key: value for key, value in asked.items() if value is not None},
        )
        return listed(ColdStartReport, content)

    def create_key(self, asked: NewKey) -> CreatedKey:
        content = self._call("POST", "/v1/keys", json=asked.model_dump(mode="json"))
        return parsed(CreatedKey, content)

    def nodes(self) -> list[NodeStatus]:
        """Every registered node, by id."""
        return listed(NodeStatus, self._call("GET", "/v1/nodes"))

    def keys(self) -> list[KeyStatus]:
        """Every key, the oldest first."""
        return listed(KeyStatus, self._call("GET", "/v1/keys"))

    def revoke_key(self, key_id: str) -> KeyStatus:
        return parsed(KeyStatus, self._call("DELETE", f"/v1/keys/{quote(key_id, safe='')}"))

    def tenants(self) -> list[TenantStatus]:
        """Every tenant with keys or limits, by name."""
        return listed(TenantStatus, self._call("GET", "/v1/tenants"))

    def limit_tenant(self, tenant: str, limits: TenantLimits) -> TenantStatus:
        path = f"/v1/tenants/{quote(tenant, safe='')}"
        return parsed(TenantStatus, self._call("PUT", path, json=limits.model_dump(mode="json")))

    def usage(self, *, since: date | None, until: date | None) -> list[UsageRow]:
        """What the key's tenant used, by day, tenant and model."""
        asked = {"since": since, "until": until}
        params = {name: day.isoformat() for name, day in asked.items() if day is not None}
        return listed(UsageRow, self._call("GET", "/v1/usage", params=params))

    def invoke(self, name: str, body: dict[str, Any]) -> Answer:
        """A generation, whole."""
        with http_errors(self.url):
            response = self._http.post(f"{_model_path(name)}/invoke", json=body, timeout=_patient())
            raise_problem(response)
            return Answer(response.text, *origin(response))

    def leave(self, name: str, body: dict[str, Any]) -> JobStatus:
        """A generation nobody waits for; safe to send again if no answer came to the first."""
        headers = {"Prefer": "respond-async", "Idempotency-Key": secrets.token_hex(16)}
        content = self._call("POST", f"{_model_path(name)}/invoke", json=body, headers=headers)
        return parsed(JobStatus, content)

    def jobs(
        self, *, model: str | None, state: str | None, tenant: str | None, last: int
    ) -> list[JobStatus]:
        """The newest jobs that match, page by page."""
        found: list[JobStatus] = []
        asked: dict[str, str | int | None] = {
            "model": model,
            "state": state,
            "tenant": tenant,
        }
        while len(found) < last:
            asked["limit"] = min(last - len(found), _JOBS_A_PAGE)
            page = parsed(JobList, self._call("GET", "/v1/jobs", params=_given(asked)))
            found += page.data
            if page.next is None:
                break
            asked["after"] = page.next
        return found

    def job(self, job_id: str) -> JobStatus:
        return parsed(JobStatus, self._call("GET", _job_path(job_id)))

    def job_result(self, job_id: str) -> str:
        """What the model answered."""
        return self._call("GET", f"{_job_path(job_id)}/result").decode(errors="replace")

    def cancel_job(self, job_id: str) -> JobStatus:
        return parsed(JobStatus, self._call("DELETE", _job_path(job_id)))

    def redrive_job(self, job_id: str) -> JobStatus:
        return parsed(JobStatus, self._call("POST", f"{_job_path(job_id)}/redrive"))

    @contextmanager
    def invoke_stream(self, name: str, body: dict[str, Any]) -> Iterator[Stream]:
        """A generation, as it comes, with comments that say how the wait for it goes on."""
        with (
            http_errors(self.url),
            self._http.stream(
                "POST",
                f"{_model_path(name)}/invoke",
                json=body | {"stream": True},
                headers={"Accept": "text/event-stream", "Firstlight-Progress": "true"},
                timeout=_patient(),
            ) as response,
        ):
            raise_problem(response)
            yield Stream(read_events(response.iter_bytes()), *origin(response))

    @contextmanager
    def logs(self, name: str, *, follow: bool) -> Iterator[Iterator[str]]:
        """Lines of JSON, oldest first; with `follow` they do not end."""
        with (
            http_errors(self.url),
            self._http.stream(
                "GET",
                f"{_model_path(name)}/logs",
                params={"follow": "true"} if follow else {},
                timeout=_patient() if follow else ANSWER_S,
            ) as response,
        ):
            raise_problem(response)
            yield response.iter_lines()

    def _call(self, method: str, path: str, **request: Any) -> bytes:
        with http_errors(self.url):
            response = self._http.request(method, path, **request)
            raise_problem(response)
            return response.content


def _model_path(name: str) -> str:
    return f"/v1/models/{quote(name, safe='')}"


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _given(asked: dict[str, Any]) -> dict[str, Any]:
    """The parameters that have a value."""
    return {key: value for key, value in asked.items() if value is not None}


def _patient() -> httpx.Timeout:
    """The platform itself bounds how long an invocation may take."""
    return httpx.Timeout(None, connect=CONNECT_S)


def _is_here(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
