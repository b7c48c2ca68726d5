"""What `/metrics` shows beside the activator's own counters, read from the state at each scrape."""

from collections import Counter as Tally
from collections.abc import Iterator

from control_plane.api.services import Services
from control_plane.autoscaler.tracked import DecisionRecord
from control_plane.deployments.service import Deployments
from control_plane.deployments.store import Change
from infra.contracts.base import ModelName, RevisionName
from infra.contracts.node import Gpu
from infra.metrics import Counter, Labels, Metrics
from infra.supervise import repeat

KEPT_AFTER_DELETION_S = 60.0  # at most


def requests_counter(services: Services) -> Counter:
    """Generation requests by revision and how they ended; 499: the client left.

    Counts of a revision that left traffic go with the next change of its model, so that they are
    read once more and do not pile up.
    """
    counter = services.metrics.counter(
        "requests_total",
        "Generation requests by model, revision and status code.",
        ("model", "revision", "code"),
    )

    def forget_who_left(change: Change) -> None:
        left = {revision.name for revision in change.left}
        for model, revision, _ in counter.matching(change.model):
            if revision not in left and services.deployments.live(RevisionName(revision)) is None:
                counter.forget(model, revision)

    services.deployments.subscribe(forget_who_left)
    return counter


def register_gauges(services: Services) -> None:
    """Adds the gauges and the counter of decisions to the metrics."""
    metrics, deployments = services.metrics, services.deployments

    def in_flight() -> Iterator[tuple[Labels, float]]:
        for one in deployments.all():
            yield (one.model,), services.lines.demand_of(one.model).in_flight

    def waiting() -> Iterator[tuple[Labels, float]]:
        for one in deployments.all():
            yield (one.model,), services.lines.demand_of(one.model).waiting

    def replicas() -> Iterator[tuple[Labels, float]]:
        tally = Tally((it.model, it.state.value) for it in services.fleet.replicas())
        yield from sorted(tally.items())

    def desired() -> Iterator[tuple[Labels, float]]:
        for one in deployments.all():
            explanation = services.autoscaler.explain(one.model)
            if explanation is not None:
                yield (one.model,), explanation.desired_replicas

    def nodes() -> Iterator[tuple[Labels, float]]:
        yield (), len(services.fleet.nodes())

    def standby() -> Iterator[tuple[Labels, float]]:
        for node in services.fleet.nodes():
            yield (node.node_id,), node.parked

    def sleepers() -> Iterator[tuple[Labels, float]]:
        for node in services.fleet.nodes():
            yield (node.node_id,), len(node.sleepers)

    def gpus() -> Iterator[tuple[Labels, float]]:
        tally = Tally(
            (node.node_id, gpu.kind, _state_of(gpu))
            for node in services.fleet.nodes()
            for gpu in node.gpus
        )
        yield from sorted(tally.items())

    metrics.gauge("in_flight", "Requests at replicas.", ("model",), in_flight)
    metrics.gauge("waiting", "Requests held for a permit.", ("model",), waiting)
    metrics.gauge("replicas", "Replicas that have not ended.", ("model", "state"), replicas)
    metrics.gauge("desired_replicas", "Replicas decided on.", ("model",), desired)

    def jobs() -> Iterator[tuple[Labels, float]]:
        for (model, state), count in sorted(services.job_counts().items()):
            yield (model, state.value), count

    metrics.gauge("jobs", "Jobs that are kept.", ("model", "state"), jobs)
    metrics.gauge("nodes", "Registered nodes.", (), nodes)
    metrics.gauge("standby_ready", "Standby workers that wait.", ("node",), standby)
    metrics.gauge("gpus", "GPUs by what becomes of them.", ("node", "kind", "state"), gpus)
    metrics.gauge("sleepers", "Workers that sleep with a model.", ("node",), sleepers)
    decisions = metrics.counter(
        "decisions_total", "Decisions that changed a revision's replicas.", ("model",)
    )

    def decided(record: DecisionRecord) -> None:
        decisions.add(record.revision.rpartition("@")[0])

    services.autoscaler.subscribe(decided)


async def drop_counts_of_the_deleted(metrics: Metrics, deployments: Deployments) -> None:
    """Until cancelled; not at once, for what is held or runs when its model is deleted is still
    to be counted, and read once more."""

    def is_kept(model: str) -> bool:
        return not model or deployments.get(ModelName(model)) is not None

    await repeat(
        lambda: metrics.retain("model", is_kept),
        every_s=KEPT_AFTER_DELETION_S,
        on_failure="metrics.not-dropped",
    )


def _state_of(gpu: Gpu) -> str:
    if gpu.trouble is not None:
        return "in-trouble"
    if gpu.replica_id is not None:
        return "held"
    return "free" if gpu.sleeper is None else "asleep"
