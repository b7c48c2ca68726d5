from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from control_plane.cli.failure import CommandFailed
from control_plane.cli.sse import Comment, Event, read_events
from control_plane.cli.units import amount, duration, elapsed, milliseconds
from control_plane.cli.waterfall import Canvas, waterfall
from infra.contracts.stage import Came, Stage, StagePart
from tests.cli.fake_platform import report


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    text = (
        ": stage weights 40%\n\n"
        'data: {"delta": "größer"}\r\n\r\n'
        "event: error\ndata: a\ndata:b\nid: 7\n\n"
        "retry: 5\n\n"
        "data: cut off"
    ).encode()
    chunks = (text[at : at + size] for at in range(0, len(text), size))

    assert list(read_events(chunks)) == [
        Comment("stage weights 40%"),
        Event("message", '{"delta": "größer"}'),
        Event("error", "a\nb"),
    ]


def test_an_event_without_end_is_given_up() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * (1 << 20)

    with pytest.raises(CommandFailed, match="without an end"):
        list(read_events(endless()))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (269_060_544, "269.1 MB"), (999_960, "1.0 MB"),
     (16_060_522_496, "16.1 GB"), (5 * 10**12, "5.0 TB")],
)  # fmt: skip
def test_bytes_in_powers_of_ten(size: int, expected: str) -> None:
    assert amount(size) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, "0.0 s"), (0.84, "0.8 s"), (42, "42 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"),
     (200_000, "2 d")],
)  # fmt: skip
def test_durations_in_one_unit(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_a_watched_counter_changes_unit_at_a_second() -> None:
    assert [elapsed(0.0), elapsed(0.9994), elapsed(1.0), elapsed(75.26)] == [
        *("0 ms", "999 ms", "1.0 s", "75.3 s")
    ]


def test_milliseconds_have_one_decimal() -> None:
    assert milliseconds(1.17144) == "1,171.4 ms"


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0.0, 1.0, "████████"),
        (0.5, 0.5, "    ████"),
        (0.0, 0.0, "▏"),
        (1.0, 0.0, "       █"),
        (0.25, 0.0625, "  ▌"),
        (0.99, 0.5, "       █"),
    ],
)
def test_a_bar_lies_where_its_stage_happened(offset: float, length: float, expected: str) -> None:
    assert Canvas(8).bar(offset, length, "").plain == expected


def test_a_terminal_without_blocks_gets_plain_characters() -> None:
    console = Console(width=80, file=StringIO())

    with console.capture() as capture:
        console.print(waterfall(report(), Canvas(20, has_blocks=False)))

    assert capture.get().isascii()
    assert "  prefill      112.2 ms       #############" in capture.get()


def test_the_parts_of_a_stage_stand_below_it_unless_they_are_too_short_to_matter() -> None:
    whole = report(((Stage.ENGINE, 0.5, None, None),))
    parts = (StagePart(name="model", seconds=0.4), StagePart(name="cache", seconds=0.0004))
    share = whole.shares[0].model_copy(update={"parts": parts})
    console = Console(width=80, file=StringIO())

    with console.capture() as capture:
        console.print(waterfall(whole.model_copy(update={"shares": (share,)}), Canvas(20)))

    assert "\n    model      400.0 ms" in capture.get()
    assert "cache" not in capture.get()


def test_bytes_that_moved_say_how_fast() -> None:
    whole = report(((Stage.WEIGHTS, 2.0, 3_000_000_000, "s3"),))
    share = whole.shares[0].model_copy(update={"bytes_per_s": 1.5e9})
    console = Console(width=100, file=StringIO())

    with console.capture() as capture:
        console.print(waterfall(whole.model_copy(update={"shares": (share,)}), Canvas(20)))

    assert "3.0 GB s3 1.5 GB/s" in capture.get()


def test_bytes_of_several_sources_are_told_apart() -> None:
    whole = report(((Stage.IMAGE, 0.0, 90_000_000, "origin+cache"),))
    came = (Came(source="origin", bytes=80_000_000), Came(source="cache", bytes=10_000_000))
    share = whole.shares[0].model_copy(update={"came": came, "bytes_per_s": 4e7})
    console = Console(width=120, file=StringIO())

    with console.capture() as capture:
        console.print(waterfall(whole.model_copy(update={"shares": (share,)}), Canvas(20)))

    assert "90.0 MB origin 80.0 MB, cache 10.0 MB 40.0 MB/s" in capture.get()


def test_a_request_that_took_no_time_can_be_drawn() -> None:
    console = Console(width=80, file=StringIO())
    instant = report(((Stage.QUEUE, 0.0, None, None),), unattributed_s=0.0)

    with console.capture() as capture:
        console.print(waterfall(instant, Canvas(20)))

    assert "  total        0.0 ms to the first token" in capture.get()
