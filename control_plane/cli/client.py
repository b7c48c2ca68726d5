"""The platform's HTTP API as calls, every failure as a CommandFailed."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from control_plane.cli.failure import CommandFailed, from_problem
from control_plane.cli.sse import Comment, Event, read_events
from infra.contracts.explanation import ModelExplanation
from infra.contracts.job import JobList, JobStatus
from infra.contracts.model_spec import ModelSpec
from infra.contracts.node import NodeStatus
from infra.contracts.problem import Problem
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

CONNECT_S = 5.0
ANSWER_S = 30.0  # of a call that has nothing to wait for
MAX_PROBLEM_BYTES = 1 << 20
_JOBS_A_PAGE = 100

Body = TypeVar("Body", bound=BaseModel)


class _ModelEntry(BaseModel):
    status: ModelStatus | None


class _ModelList(BaseModel):
    data: list[_ModelEntry]


class _NodeList(BaseModel):
    data: list[NodeStatus]


class _KeyList(BaseModel):
    data: list[KeyStatus]


class _TenantList(BaseModel):
    data: list[TenantStatus]


class _UsageList(BaseModel):
    data: list[UsageRow]


class _RevisionList(BaseModel):
    data: list[RevisionStatus]


class _ReportList(BaseModel):
    data: list[ColdStartReport]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer to an invocation."""

    body: str
    request_id: str
    was_cold: bool


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
        return _parsed(ModelStatus, content)

    def revisions(self, name: str) -> list[RevisionStatus]:
        """Every revision of a model that is kept, the newest first."""
        content = self._call("GET", f"{_model_path(name)}/revisions")
        return _parsed(_RevisionList, content).data

    def traffic(self, name: str) -> TrafficStatus:
        return _parsed(TrafficStatus, self._call("GET", f"{_model_path(name)}/traffic"))

    def split(
        self, name: str, percents: dict[str, int], *, generation: int | None = None
    ) -> TrafficStatus:
        """Splits a model's requests; percents by revision. With a generation, only if nobody has
        changed the model since."""
        path = f"{_model_path(name)}/traffic"
        asked = _given({"traffic": percents, "generation": generation})
        return _parsed(TrafficStatus, self._call("PUT", path, json=asked))

    def warm(self, name: str, revision: str, *, replicas: int) -> WarmStatus:
        """Has replicas of a revision ready before requests go there; to be repeated until then."""
        asked = {"revision": revision, "replicas": replicas}
        return _parsed(WarmStatus, self._call("POST", f"{_model_path(name)}/warm", json=asked))

    def rollback(self, name: str, revision: str | None) -> TrafficStatus:
        """Sends all requests to a former revision; None takes the one before."""
        asked = _given({"revision": revision})
        path = f"{_model_path(name)}/rollback"
        return _parsed(TrafficStatus, self._call("POST", path, json=asked))

    def status(self, name: str) -> ModelStatus:
        return _parsed(ModelStatus, self._call("GET", _model_path(name)))

    def models(self) -> list[ModelStatus]:
        """Every model of the key's tenant, by name."""
        listed = _parsed(_ModelList, self._call("GET", "/v1/models")).data
        own = (entry.status for entry in listed if entry.status is not None)
        return sorted(own, key=lambda status: status.name)

    def delete(self, name: str) -> None:
        self._call("DELETE", _model_path(name))

    def explain(self, name: str, *, last: int) -> ModelExplanation:
        """Why a model is where it is, with the last decisions."""
        content = self._call("GET", f"{_model_path(name)}/explain", params={"last": last})
        return _parsed(ModelExplanation, content)

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
        return _parsed(_ReportList, content).data

    def create_key(self, asked: NewKey) -> CreatedKey:
        content = self._call("POST", "/v1/keys", json=asked.model_dump(mode="json"))
        return _parsed(CreatedKey, content)

    def nodes(self) -> list[NodeStatus]:
        """Every registered node, by id."""
        return _parsed(_NodeList, self._call("GET", "/v1/nodes")).data

    def keys(self) -> list[KeyStatus]:
        """Every key, the oldest first."""
        return _parsed(_KeyList, self._call("GET", "/v1/keys")).data

    def revoke_key(self, key_id: str) -> KeyStatus:
        return _parsed(KeyStatus, self._call("DELETE", f"/v1/keys/{quote(key_id, safe='')}"))

    def tenants(self) -> list[TenantStatus]:
        """Every tenant with keys or limits, by name."""
        return _parsed(_TenantList, self._call("GET", "/v1/tenants")).data

    def limit_tenant(self, tenant: str, limits: TenantLimits) -> TenantStatus:
        path = f"/v1/tenants/{quote(tenant, safe='')}"
        return _parsed(TenantStatus, self._call("PUT", path, json=limits.model_dump(mode="json")))

    def usage(self, *, since: date | None, until: date | None) -> list[UsageRow]:
        """What the key's tenant used, by day, tenant and model."""
        asked = {"since": since, "until": until}
        params = {name: day.isoformat() for name, day in asked.items() if day is not None}
        return _parsed(_UsageList, self._call("GET", "/v1/usage", params=params)).data

    def invoke(self, name: str, body: dict[str, Any]) -> Answer:
        """A generation, whole."""
        with _http_errors(self.url):
            response = self._http.post(f"{_model_path(name)}/invoke", json=body, timeout=_patient())
            _raise_problem(response)
            return Answer(response.text, _request_id(response), _was_cold(response))

    def leave(self, name: str, body: dict[str, Any]) -> JobStatus:
        """A generation nobody waits for; safe to send again if no answer came to the first."""
        headers = {"Prefer": "respond-async", "Idempotency-Key": secrets.token_hex(16)}
        content = self._call("POST", f"{_model_path(name)}/invoke", json=body, headers=headers)
        return _parsed(JobStatus, content)

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
            page = _parsed(JobList, self._call("GET", "/v1/jobs", params=_given(asked)))
            found += page.data
            if page.next is None:
                break
            asked["after"] = page.next
        return found

    def job(self, job_id: str) -> JobStatus:
        return _parsed(JobStatus, self._call("GET", _job_path(job_id)))

    def job_result(self, job_id: str) -> str:
        """What the model answered."""
        return self._call("GET", f"{_job_path(job_id)}/result").decode(errors="replace")

    def cancel_job(self, job_id: str) -> JobStatus:
        return _parsed(JobStatus, self._call("DELETE", _job_path(job_id)))

    def redrive_job(self, job_id: str) -> JobStatus:
        return _parsed(JobStatus, self._call("POST", f"{_job_path(job_id)}/redrive"))

    @contextmanager
    def invoke_stream(self, name: str, body: dict[str, Any]) -> Iterator["Stream"]:
        """A generation, as it comes, with comments that say how the wait for it goes on."""
        with (
            _http_errors(self.url),
            self._http.stream(
                "POST",
                f"{_model_path(name)}/invoke",
                json=body | {"stream": True},
                headers={"Accept": "text/event-stream", "Firstlight-Progress": "true"},
                timeout=_patient(),
            ) as response,
        ):
            _raise_problem(response)
            yield Stream(
                items=read_events(response.iter_bytes()),
                request_id=_request_id(response),
                was_cold=_was_cold(response),
            )

    @contextmanager
    def logs(self, name: str, *, follow: bool) -> Iterator[Iterator[str]]:
        """Lines of JSON, oldest first; with `follow` they do not end."""
        with (
            _http_errors(self.url),
            self._http.stream(
                "GET",
                f"{_model_path(name)}/logs",
                params={"follow": "true"} if follow else {},
                timeout=_patient() if follow else ANSWER_S,
            ) as response,
        ):
            _raise_problem(response)
            yield response.iter_lines()

    def _call(self, method: str, path: str, **request: Any) -> bytes:
        with _http_errors(self.url):
            response = self._http.request(method, path, **request)
            _raise_problem(response)
            return response.content


@dataclass(frozen=True, slots=True)
class Stream:
    """A streaming answer whose head has come."""

    items: Iterator[Comment | Event]
    request_id: str
    was_cold: bool


def _model_path(name: str) -> str:
    return f"/v1/models/{quote(name, safe='')}"


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _given(asked: dict[str, Any]) -> dict[str, Any]:
    """The parameters that have a value."""
    return {key: value for key, value in asked.items() if value is not None}


def _request_id(response: httpx.Response) -> str:
    return str(response.headers.get("Firstlight-Request-Id", ""))


def _was_cold(response: httpx.Response) -> bool:
    return str(response.headers.get("Firstlight-Cold-Start")).lower() == "true"


def _patient() -> httpx.Timeout:
    """The platform itself bounds how long an invocation may take."""
    return httpx.Timeout(None, connect=CONNECT_S)


def _is_here(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _raise_problem(response: httpx.Response) -> None:
    """Raises what an error response says."""
    if response.is_success:
        return
    content = response.read()[:MAX_PROBLEM_BYTES]
    try:
        problem = Problem.model_validate_json(content)
    except ValidationError:
        where = f"{response.request.method} {response.request.url}"
        raise CommandFailed(
            f"{where} answered {response.status_code} without saying why",
            hint="is this address the platform's?",
        ) from None
    if response.status_code == 401 and problem.hint is None:
        raise CommandFailed(problem.detail, hint="set PLATFORM_API_KEY to the platform's key")
    raise from_problem(problem)


def _parsed(contract: type[Body], content: bytes) -> Body:
    try:
        return contract.model_validate_json(content)
    except ValidationError as error:
        raise CommandFailed(
            f"the platform's answer cannot be read: {error.errors(include_url=False)[0]['msg']}",
            hint="are the platform and this command of one version?",
        ) from error


@contextmanager
def _http_errors(url: str) -> Iterator[None]:
    """Turns what httpx raises into words."""
    try:
        yield
    except httpx.ConnectError as error:
        raise CommandFailed(
            f"nothing answers at {url}", hint="start it with `platform up`"
        ) from error
    except httpx.ConnectTimeout as error:
        raise CommandFailed(
            f"{url} cannot be reached: no connection after {CONNECT_S:.0f} s",
            hint="check PLATFORM_URL",
        ) from error
    except httpx.TimeoutException as error:
        raise CommandFailed(f"{url} did not answer in time") from error
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
        raise CommandFailed(
            "the platform closed the connection before its answer was complete"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandFailed(f"{url}: {error}") from error
