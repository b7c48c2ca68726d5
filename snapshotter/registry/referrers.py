"""Artifacts beside an image: manifests that name it as their subject (OCI 1.1, referrers).

A registry that keeps no list of referrers gets one as an index under the tag `sha256-<digest>`, as
the specification has clients do.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from infra.errors import NotFound, SourceUnavailable
from infra.registry.client import Registry
from infra.registry.manifest import INDEX, MANIFEST, Descriptor
from infra.registry.reference import Reference

_EMPTY: Final = b"{}"
_EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
_MOST_LISTED: Final = 1000
_TRIES: Final = 5


def attach(
    registry: Registry,
    image: Reference,
    subject: Descriptor,
    *,
    artifact_type: str,
    blobs: Sequence[Descriptor],
) -> Descriptor:
    """Pushes an artifact of `blobs`, which are there, beside `subject`; may be repeated.

    Another artifact of the type is replaced in the list that we keep, not in the registry's own.
    """
    config = registry.push_blob(image, _EMPTY, _EMPTY_TYPE)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": config.as_json(),
        "layers": [blob.as_json() for blob in blobs],
        "subject": Descriptor(subject.media_type, subject.digest, subject.size, {}).as_json(),
    }
    pushed, is_listed = registry.push_manifest(image, manifest)
    artifact = Descriptor(pushed.media_type, pushed.digest, pushed.size, {}, artifact_type)
    if not is_listed:
        _list(registry, image, subject.digest, artifact)
    return artifact


def listed_beside(registry: Registry, image: Reference, subject: str) -> list[Descriptor]:
    """All artifacts beside the manifest `subject` (a digest).

    Both ways to ask are gone at once: nobody knows before which one the registry answers.
    """
    with ThreadPoolExecutor(1) as pool:
        by_tag = pool.submit(_listed, registry, image, subject)
        listed = registry.referrers(image, subject)
        return (by_tag.result() if listed is None else listed)[:_MOST_LISTED]


def of_type(listed: Sequence[Descriptor], artifact_type: str) -> list[Descriptor]:
    """Those of the type."""
    return [each for each in listed if each.artifact_type == artifact_type]


def _list(registry: Registry, image: Reference, subject: str, artifact: Descriptor) -> None:
    """Reads, adds, writes, and looks again: another client may have written between."""
    for _ in range(_TRIES):
        listed = _listed(registry, image, subject)
        if artifact.digest in {each.digest for each in listed}:
            return
        others = [each for each in listed if each.artifact_type != artifact.artifact_type]
        manifests = [each.as_json() for each in [*others, artifact]]
        index: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        registry.push_manifest(image, index, name=_tag(subject))
    raise SourceUnavailable(f"{image.host} does not keep what is listed beside the image")


def _listed(registry: Registry, image: Reference, subject: str) -> list[Descriptor]:
    try:
        index = registry.manifest(Reference(image.host, image.repository, _tag(subject)))
    except NotFound:
        return []
    listed = index.content.get("manifests")
    return [Descriptor.parse(each) for each in listed] if isinstance(listed, list) else []


def _tag(digest: str) -> str:
    return digest.replace(":", "-")
