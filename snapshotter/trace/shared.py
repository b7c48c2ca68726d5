"""Traces beside their images in a registry, so that a node starts an image as another one did."""

from collections.abc import Sequence
from typing import Final

import structlog

from infra.errors import ImageInvalid, PlatformError
from infra.registry.client import Registry
from infra.registry.manifest import Descriptor
from infra.registry.reference import Reference
from snapshotter.registry.referrers import attach, of_type
from snapshotter.trace.trace import MOST_TRACE_BYTES, Trace

log = structlog.get_logger()

ARTIFACT_TYPE: Final = "application/vnd.firstlight.start-trace.v1"
_MEDIA_TYPE: Final = "application/vnd.firstlight.start-trace.v1+json"
_MOST_ARTIFACTS: Final = 4


def push_trace(registry: Registry, image: Reference, trace: Trace) -> Descriptor:
    """Puts it beside the image; raises what the registry raises, Forbidden above all."""
    subject = registry.manifest(image.at(trace.image)).descriptor
    blob = registry.push_blob(image, trace.packed(), _MEDIA_TYPE)
    return attach(registry, image, subject, artifact_type=ARTIFACT_TYPE, blobs=[blob])


class TracePusher:
    """Hears of new traces; that a registry does not take one is nobody's failure."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __call__(self, image: Reference, trace: Trace) -> None:
        try:
            pushed = push_trace(self._registry, image, trace)
            log.info("trace.pushed", image=str(image), trace=pushed.digest)
        except PlatformError as error:
            log.warning("trace.not_pushed", image=str(image), error=error.detail)


def fetch_traces(
    registry: Registry, image: Reference, manifest: str, listed: Sequence[Descriptor]
) -> list[Trace]:
    """Those among what is listed beside the image.

    One that is malformed or gone is left out: a start needs none.
    """
    traces = []
    for artifact in of_type(listed, ARTIFACT_TYPE)[-_MOST_ARTIFACTS:]:
        try:
            content = registry.manifest(image.at(artifact.digest)).content
            blobs = content.get("layers")
            for described in blobs if isinstance(blobs, list) else []:
                blob = Descriptor.parse(described)
                trace = Trace.parse(registry.blob(image, blob, most_bytes=MOST_TRACE_BYTES))
                if trace.image != manifest:
                    raise ImageInvalid("the trace is one of another image")
                traces.append(trace)
        except PlatformError:
            continue
    return traces
