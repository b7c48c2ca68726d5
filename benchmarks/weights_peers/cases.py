"""The cases that are measured: `python -m benchmarks.weights_peers.cases CASE FOLDER [URL]`."""

import json
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file

from infra.contracts.revision import ResolvedSource, SourceFile
from infra.paging import steps
from infra.sources.digests import FileDigests
from infra.sources.http_ranges import HttpRanges, Location
from infra.sources.landing import Landing, landing_bytes
from infra.sources.patience import PATIENT
from infra.sources.piece_digests import PieceDigests
from infra.sources.port import Remote
from infra.sources.staging import DIGESTS_SUFFIX, fetch
from infra.sources.stream import open_source
from worker.boot.landings import Landings
from worker.weights.loader import FLOATS, Weights, open_weights
from worker.weights.plan import SINGLE_FILE, plan_weights

FILE_DIGEST = "sha256:" + "1" * 64


def load_and_clone(folder: Path, _: str) -> float:
    """What a loader does that keeps its own copy."""
    begin = time.perf_counter()
    tensors = {name: it.clone() for name, it in load_file(folder / SINGLE_FILE).items()}
    seconds = time.perf_counter() - begin
    assert tensors
    return seconds


def mapped(folder: Path, _: str) -> float:
    """Ours, of a file that is here: every page is in memory, every tensor is a view."""
    begin = time.perf_counter()
    take_all(folder, open_weights(folder, lambda fraction: None))
    return time.perf_counter() - begin


def from_disk(folder: Path, _: str) -> float:
    """The same of a file that is on the disk. Memory is ready for it, as it is in `direct`."""
    ready = Landings()
    ready.prepare((folder / SINGLE_FILE).stat().st_size)  # while the node stands by
    begin = time.perf_counter()
    take_all(folder, open_weights(folder, lambda fraction: None, spare=ready.spare()))
    return time.perf_counter() - begin


def direct(folder: Path, _: str) -> float:
    """The disk's own pace: O_DIRECT, four threads, into memory that was touched before."""
    path = folder / SINGLE_FILE
    size = path.stat().st_size & ~4095
    memory = mmap.mmap(-1, size)
    for start in range(0, size, mmap.PAGESIZE):
        memory[start] = 1
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    view = memoryview(memory)

    def read(step: tuple[int, int]) -> None:
        start, length = step
        assert os.preadv(file, [view[start : start + length]], start) == length

    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, steps(size, 8 << 20)))
    return time.perf_counter() - begin


def unverified(folder: Path, url: str) -> float:
    """Ours, over HTTP, of a source that publishes no digest."""
    return streamed(folder, url, digest=None)


def verified(folder: Path, url: str) -> float:
    """Ours, of content of which this node knows the digests of chunks."""
    return streamed(folder, url, digest=None, is_known=True)


def verified_first(folder: Path, url: str) -> float:
    """Ours, of content that is new: SHA-256 of the whole file, in order."""
    return streamed(folder, url, digest=FileDigests().sha256(folder / SINGLE_FILE))


def streamed(folder: Path, url: str, *, digest: str | None, is_known: bool = False) -> float:
    size = (folder / SINGLE_FILE).stat().st_size
    file = SourceFile(path=SINGLE_FILE, size=size, digest=digest)
    resolved = ResolvedSource(uri=url, digest=FILE_DIGEST, files=(file,))

    def locate(file: SourceFile, *, again: bool) -> Location:
        return Location(f"{url}/{file.path}")

    def bring(*_: object) -> None:
        raise NotImplementedError("there is nothing but weights")

    remote = Remote(bring, lambda: HttpRanges(locate, PATIENT), PATIENT, lambda: "http")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="cache-") as cache:
        if is_known:
            whole = fetch(resolved, Path(cache), remote, lambda fraction: None)
            (whole / SINGLE_FILE).unlink()
            (known,) = Path(cache).glob(f"*{DIGESTS_SUFFIX}/*")
            assert PieceDigests.of(known.read_bytes(), size=size)
        landing = Landing(landing_bytes([size]))  # while the node stands by
        landing.touch()
        begin = time.perf_counter()
        opened = open_source(
            resolved, Path(cache), remote, lambda _: landing, lambda fraction: None
        )
        assert opened.stream is not None
        opened.folder.mkdir(exist_ok=True)
        weights = open_weights(opened.folder, lambda fraction: None, stream=opened.stream)
        take_all(folder, weights)
        opened.stream.finish()
        seconds = time.perf_counter() - begin
        opened.stream.close()
        return seconds


def take_all(folder: Path, weights: Weights) -> None:
    """Asks for every tensor, as a model does that is built of them."""
    for entry in plan_weights(folder).shards[0].tensors:
        weights.take(entry.name, entry.shape, FLOATS[entry.dtype])


CASES: dict[str, Callable[[Path, str], float]] = {
    it.__name__: it
    for it in (load_and_clone, mapped, from_disk, direct, unverified, verified, verified_first)
}


def main() -> None:
    case, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    seconds = CASES[case](folder, sys.argv[3] if len(sys.argv) > 3 else "")
    size = (folder / SINGLE_FILE).stat().st_size
    json.dump({"bytes": size, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
