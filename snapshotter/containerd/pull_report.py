"""Says how a pull goes: to people, or to a program that waits for it."""

from typing import Protocol, TextIO

from infra.contracts.image_pull import Pulled, PullProgress
from snapshotter.containerd.layer_puller import How
from snapshotter.containerd.puller import PulledImage


class Report(Protocol):
    """Hears of each layer before it is pulled, and of the image at the end."""

    def layer(self, done: int, total: int, digest: str) -> None: ...

    def finish(self, image: PulledImage) -> None: ...


class PullReport:
    """The image's name with its digest on `out`, everything else on `err`."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err

    def layer(self, done: int, total: int, digest: str) -> None:
        if self._err.isatty():
            self._err.write(f"layer {done + 1} of {total}: {digest}\n")

    def finish(self, image: PulledImage) -> None:
        for how in How:
            layers = [layer for layer in image.layers if layer.how is how]
            if layers:
                size_mb = sum(layer.size_bytes for layer in layers) / 1e6
                self._err.write(f"{len(layers)} {how.value}, {size_mb:.1f} MB in the registry\n")
        self._out.write(f"{image.name}@{image.digest}\n")


class JsonPullReport:
    """PullLines, of which the last one is Pulled."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def layer(self, done: int, total: int, digest: str) -> None:
        self._out.write(PullProgress(fraction=done / total).model_dump_json() + "\n")
        self._out.flush()

    def finish(self, image: PulledImage) -> None:
        downloaded = [layer for layer in image.layers if layer.how is How.UNPACKED]
        is_new = any(layer.how is not How.PRESENT for layer in image.layers)
        pulled = Pulled(
            digest=image.digest,
            bytes=sum(layer.size_bytes for layer in downloaded),
            source="origin" if is_new else "cache",
        )
        self._out.write(pulled.model_dump_json() + "\n")
        self._out.flush()
