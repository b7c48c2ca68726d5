"""What a lazy image saves of a start, and what its mounted layers cost once they are here."""

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.image_starts.mounted_layers import measure_kills, measure_layers
from benchmarks.image_starts.node import Start, lazy_start, plain_start
from benchmarks.image_starts.registry_images import REPOSITORY, Image, push_images
from benchmarks.measure.link import running_link
from benchmarks.measure.report import Target, targets_table
from benchmarks.measure.torch_image import torch_layers
from tests.support.registry import running_registry

PARTS = ("starts", "layers", "kills")
MBIT_PER_S = 1000.0
ROUND_TRIP_MS = 5.0

Figures = dict[str, list[Start]]


def main() -> None:
    """Prints what each way takes, and the verdicts."""
    parser = argparse.ArgumentParser(prog="scripts/bench images", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each way")
    parser.add_argument("--image", type=Path, help="where its layers are, or are made")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure of it"
    )
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: containers need root\nhint: run it as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was mounted is unmounted
    console = Console(width=120)
    rows: list[Target] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image = arguments.image or folder / "image"
        if "starts" in arguments.parts:
            figures, gzip, zstd = measure_starts(image, folder, rounds=arguments.rounds)
            console.print(_table(figures, gzip, zstd))
            rows += targets(figures, gzip, zstd)
        if "layers" in arguments.parts:
            rows += measure_layers(torch_layers(image), folder, rounds=arguments.rounds)
        if "kills" in arguments.parts:
            rows += measure_kills(torch_layers(image)[-1], folder)
    console.print(targets_table(rows))


def measure_starts(image: Path, folder: Path, *, rounds: int) -> tuple[Figures, Image, Image]:
    """Starts on nodes that have nothing, each way in turn; also the image's two forms."""
    with ExitStack() as stack:
        registry = stack.enter_context(running_registry(folder))
        gzip, zstd = push_images(registry.address, image)
        link = stack.enter_context(
            running_link(registry.address, mbit_per_s=MBIT_PER_S, round_trip_ms=ROUND_TRIP_MS)
        )

        def named(image: Image) -> str:
            return f"{link.address}/{REPOSITORY}:{image.tag}"

        ways: dict[str, Callable[[bool], Start]] = {
            "plain": lambda _: plain_start(link, named(gzip)),
            "gzip": lambda shares: lazy_start(link, named(gzip), shares=shares),
            "zstd": lambda shares: lazy_start(link, named(zstd), shares=shares),
        }
        figures: Figures = {}
        for number in range(2 * rounds):
            # the last start of the first half leaves its trace for all of the second
            is_traced = number >= rounds
            for way, start in ways.items():
                if way == "plain" and is_traced:
                    continue
                name = f"{way} with a trace" if is_traced else way
                started = start(number == rounds - 1)
                figures.setdefault(name, []).append(started)
                sys.stderr.write(f"{name}: {started}\n")
        return figures, gzip, zstd


def median(figures: Figures, way: str, value: Callable[[Start], float]) -> float:
    """Of the rounds of one way."""
    return statistics.median(value(start) for start in figures[way])


def targets(figures: Figures, gzip: Image, zstd: Image) -> list[Target]:
    """What issue 5 promises."""
    rows = []
    for image in (gzip, zstd):
        way = image.tag
        traced = f"{way} with a trace"
        total = {name: median(figures, name, lambda start: start.total_s) for name in figures}
        fetched = median(figures, traced, lambda start: start.fetched_bytes) / gzip.size_bytes
        pull_s = median(figures, traced, lambda start: start.pull_s)
        second = median(figures, traced, lambda start: start.second_s)
        plain_second = median(figures, "plain", lambda start: start.second_s)
        rows += [
            Target(f"{way}: lazy pull", 0.3, pull_s, True, "s"),
            Target(
                f"{way}: first ever start, faster than plain", 2, total["plain"] / total[way], False
            ),
            Target(
                f"{way}: with a trace, faster than plain",
                3.5,
                total["plain"] / total[traced],
                False,
            ),
            Target(
                f"{way}: fetched before ready, of the gzip image",
                50 if way == "gzip" else 35,
                100 * fetched,
                True,
                "%",
            ),
            Target(f"{way}: second container, of plain's", 1.2, second / plain_second, True),
        ]
    return rows


def _table(figures: Figures, gzip: Image, zstd: Image) -> Table:
    table = Table(
        title=f"1 Gbit/s, {ROUND_TRIP_MS:g} ms; image of {gzip.size_bytes / 1e6:.0f} MB as gzip, "
        f"{zstd.size_bytes / 1e6:.0f} MB as zstd; indexed in {gzip.made_s:.1f} s, "
        f"converted in {zstd.made_s:.1f} s"
    )
    columns = ("", "pull, s", "to import torch, s", "together, s", "fetched, MB", "second, s")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    values: tuple[Callable[[Start], float], ...] = (
        lambda start: start.pull_s,
        lambda start: start.import_s,
        lambda start: start.total_s,
        lambda start: start.fetched_bytes / 1e6,
        lambda start: start.second_s,
    )
    for way in figures:
        table.add_row(way, *(f"{median(figures, way, value):.2f}" for value in values))
    return table


if __name__ == "__main__":
    main()
