"""Says what became of an image that was indexed or converted."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TextIO

from infra.contracts.image_index import ImageIndexed, IndexFailed, IndexLine, IndexProgress
from infra.errors import DependencyMissing, ImageUnavailable, PlatformError
from snapshotter.index.publish import SMALL, LayerReport, OnProgress, Published


def write_layer(layer: LayerReport, err: TextIO) -> None:
    """A line for people, as soon as the layer is done."""
    size_mb = layer.size_bytes / 1e6
    if layer.why_not is None:
        said = f"{layer.num_chunks} chunks, index of {layer.index_bytes / 1e6:.2f} MB"
    else:
        said = f"no index: {layer.why_not}"
    err.write(f"{layer.digest[:19]}  {size_mb:.1f} MB  {said}\n")
    err.flush()


def write_published(published: Published, out: TextIO, *, as_json: bool) -> None:
    """The image with its digest and the index's; or everything, as JSON."""
    if as_json:
        out.write(json.dumps(asdict(published)) + "\n")
        return
    out.write(f"{published.image}\n")
    out.write(f"index {published.index or 'none: no layer can have one'}\n")


def run_in_background(index: Callable[[OnProgress], Published], out: TextIO) -> bool:
    """Indexes an image and says so in lines of JSON; whether it went well. Raises nothing that an
    image or a machine may cause."""

    def say(line: IndexLine) -> None:
        out.write(f"{line.model_dump_json()}\n")
        out.flush()

    try:
        published = index(lambda fraction: say(IndexProgress(fraction=min(1.0, fraction))))
    except PlatformError as error:
        say(_failed(error))
    except OSError as error:
        say(_failed(ImageUnavailable(f"it cannot be read here: {error.strerror or error}")))
    except ImportError as error:
        hint = "pip install 'firstlight[snapshotter]' beside the control plane"
        say(_failed(DependencyMissing(f"indexing needs the package {error.name}", hint=hint)))
    else:
        say(_indexed(published))
        return True
    return False


def _failed(error: PlatformError) -> IndexFailed:
    hint = None if error.hint is None else error.hint[:1000]
    return IndexFailed(code=error.slug, detail=error.detail[:4000], hint=hint)


def _indexed(published: Published) -> ImageIndexed:
    without = [layer for layer in published.layers if layer.why_not is not None]
    why_not = next((it.why_not for it in without if it.why_not != SMALL), None)
    return ImageIndexed(
        index=published.index,
        layers=len(published.layers),
        lazy=len(published.layers) - len(without),
        why_not=None if why_not is None else why_not[:1000],
    )
