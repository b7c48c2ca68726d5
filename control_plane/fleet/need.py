"""What one replica of a revision occupies on a node."""

from control_plane.capacity.port import Need
from infra.contracts.revision import Revision
from infra.gpus import Wish

MIB = 1 << 20

# Host memory of a replica where the spec says nothing: its weights, a quarter of them for the KV
# cache, and the process (CPython with torch measured 230 MiB resident, doubled for the batch).
_PROCESS_BYTES = 512 * MIB
_KV_SHARE = 0.25


def need_of(revision: Revision) -> Need:
    """Host memory, as the spec says or estimated, GPUs that hold the weights at least, and whether
    the model names an image."""
    resources = revision.spec.resources
    wish = Wish(resources.gpus, resources.gpu, _gpu_memory_bytes(revision))
    runs_image = revision.image is not None and revision.image.is_asked_for
    if resources.memory_mib is not None:
        return Need(resources.memory_mib * MIB, wish, runs_image=runs_image)
    draft_bytes = 0 if revision.draft_source is None else revision.draft_source.total_bytes
    weight_bytes = revision.facts.weight_bytes + draft_bytes
    estimate = int(weight_bytes * (1 + _KV_SHARE)) + _PROCESS_BYTES
    return Need(estimate, wish, is_estimate=True, runs_image=runs_image)


def _gpu_memory_bytes(revision: Revision) -> int:
    """Of each GPU: its share of the weights alone, in half precision where that is asked for."""
    gpus, dtype = revision.spec.resources.gpus, revision.spec.engine.dtype
    if gpus == 0:
        return 0
    return revision.facts.weight_bytes // gpus // (2 if dtype == "bfloat16" else 1)
