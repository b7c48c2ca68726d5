"""Says what became of an image that was indexed or converted."""

import json
from dataclasses import asdict
from typing import TextIO

from snapshotter.index.publish import LayerReport, Published


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
