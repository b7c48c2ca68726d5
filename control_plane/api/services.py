"""What the HTTP edge stands on."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from control_plane.activator.activator import Activator
from control_plane.activator.ledger import Ledger
from control_plane.activator.lines import Lines
from control_plane.api.auth import KeyRing
from control_plane.autoscaler.loop import Autoscaler
from control_plane.deployments.image_indexing import ImageIndexing
from control_plane.deployments.service import Deployments
from control_plane.fleet.logbook import Logbook
from control_plane.fleet.node_sessions import NodeSessions
from control_plane.fleet.state import Fleet
from control_plane.queue.service import Jobs
from control_plane.queue.webhook_url import CheckUrl
from control_plane.tenancy.keys import Keys
from control_plane.tenancy.quotas import Quotas
from control_plane.tenancy.usage import UsageLedger
from infra.clock import Clock
from infra.contracts.base import ModelName
from infra.contracts.job import JobState
from infra.metrics import Metrics

JobCounts = Callable[[], Mapping[tuple[ModelName, JobState], int]]
ReadinessCheck = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Services:
    """Everything that a route may call.

    `keys` are asked of clients, `node_keys` of node agents. Each of the `readiness` checks
    raises, or takes longer than a moment, while the platform should get no traffic.
    `check_webhook` raises Invalid for an address that will never be called, `check_lead` NotLeader
    while requests are another control plane's to answer.
    """

    deployments: Deployments
    fleet: Fleet
    lines: Lines
    activator: Activator
    autoscaler: Autoscaler
    indexing: ImageIndexing
    sessions: NodeSessions
    ledger: Ledger
    jobs: Jobs
    job_counts: JobCounts
    check_webhook: CheckUrl
    check_lead: Callable[[], None]
    logbook: Logbook
    metrics: Metrics
    clock: Clock
    keys: Keys
    quotas: Quotas
    usage: UsageLedger
    node_keys: KeyRing
    readiness: Mapping[str, ReadinessCheck] = field(default_factory=dict)
