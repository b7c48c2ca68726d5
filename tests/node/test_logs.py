from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.base import ReplicaId, RevisionName
from worker.node import logs
from worker.node.logs import LineBudget, LineSplitter, ReplicaLogs, surplus

R1, REVISION = ReplicaId("r1"), RevisionName("tiny@1")


@dataclass
class HandClock:
    at: float = 100.0

    def now(self) -> float:
        return self.at


def followed(folder: Path) -> tuple[ReplicaLogs, Path, HandClock]:
    clock = HandClock()
    replica_logs = ReplicaLogs(folder, clock)
    return replica_logs, replica_logs.open(R1, REVISION), clock


def texts(replica_logs: ReplicaLogs) -> list[str]:
    return [line.text for line in replica_logs.take(10_000)]


def test_lines_are_read_once_each_and_a_line_that_is_not_whole_waits(tmp_path: Path) -> None:
    replica_logs, path, _ = followed(tmp_path)

    path.write_bytes(b"one\ntwo\nthr")
    assert replica_logs.poll()
    assert texts(replica_logs) == ["one", "two"]
    with path.open("ab") as file:
        file.write(b"ee\n")
    assert replica_logs.poll()
    assert texts(replica_logs) == ["three"]
    assert not replica_logs.poll()


def test_what_was_in_the_file_before_is_not_this_processes_word(tmp_path: Path) -> None:
    (tmp_path / "r1.log").write_text("an earlier life\n")
    replica_logs, path, _ = followed(tmp_path)

    with path.open("a") as file:
        file.write("now\n")

    replica_logs.poll()
    assert texts(replica_logs) == ["now"]


def test_the_last_line_that_is_not_blank_is_known_at_the_end_even_without_a_line_end(
    tmp_path: Path,
) -> None:
    replica_logs, path, _ = followed(tmp_path)
    path.write_text("loading\nSegmentation fault\n\n  ")

    assert replica_logs.close(R1) == "Segmentation fault"
    assert texts(replica_logs) == ["loading", "Segmentation fault", "", "  "]
    assert replica_logs.close(R1) == ""


def test_a_flood_is_cut_and_says_how_much_is_missing(tmp_path: Path) -> None:
    replica_logs, path, clock = followed(tmp_path)
    path.write_text("x\n" * 1500)
    replica_logs.poll()
    assert len(texts(replica_logs)) == 1000

    clock.at += 1
    with path.open("a") as file:
        file.write("after\n")
    replica_logs.poll()

    assert texts(replica_logs) == ["… 500 lines dropped: too many at once", "after"]


def test_lines_that_nobody_takes_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    replica_logs, path, clock = followed(tmp_path)
    for number in range(8000):
        clock.at += 1
        if number % 500 == 0:
            with path.open("a") as file:
                file.write("".join(f"{n}\n" for n in range(number, number + 500)))
            replica_logs.poll()

    kept = texts(replica_logs)

    assert len(kept) == logs.KEPT_LINES
    assert kept[-1] == "7999"


def test_lines_that_could_not_be_shipped_go_first_the_next_time(tmp_path: Path) -> None:
    replica_logs, path, _ = followed(tmp_path)
    path.write_text("a\nb\nc\n")
    replica_logs.poll()

    replica_logs.give_back(replica_logs.take(2))

    assert texts(replica_logs) == ["a", "b", "c"]


def test_a_file_that_grew_too_long_is_cut_back_once_it_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(logs, "LARGEST_FILE", 100)
    replica_logs, path, _ = followed(tmp_path)
    with path.open("a") as file:
        file.write("y" * 150 + "\n")
        file.flush()
        replica_logs.poll()
        file.write("after\n")
        file.flush()
        replica_logs.poll()

    assert path.stat().st_size == len("after\n")
    assert texts(replica_logs) == ["y" * 150, "after"]


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_splitting_depends_on_the_bytes_and_not_on_how_they_came(portions: list[bytes]) -> None:
    together, apart = LineSplitter(), LineSplitter()

    whole = together.feed(b"".join(portions)) + together.flush()
    piecewise = [line for portion in portions for line in apart.feed(portion)] + apart.flush()

    assert piecewise == whole


def test_a_line_without_an_end_is_cut_into_pieces_that_fit_the_contract() -> None:
    lines = LineSplitter().feed(b"z" * (3 * logs.LONGEST_LINE + 5))

    assert [len(line) for line in lines] == [logs.LONGEST_LINE] * 3


@given(
    asks=st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 5)), max_size=20),
)
def test_no_more_lines_pass_than_the_burst_and_the_rate_allow(
    asks: list[tuple[int, float]],
) -> None:
    budget, now, passed = LineBudget(rate=200, burst=1000), 50.0, 0
    for wanted, pause_s in asks:
        now += pause_s
        passed += budget.grant(wanted, now=now)

    assert passed <= 1000 + (now - 50.0) * 200


def test_the_newest_files_stay_within_number_and_bytes() -> None:
    many = [(Path(f"{age}.log"), 1000.0 - age, 10) for age in range(60)]
    large = [(Path("new.log"), 3.0, 100 << 20), (Path("old.log"), 2.0, 100 << 20)]

    assert surplus(many) == [Path(f"{age}.log") for age in range(50, 60)]
    assert surplus(large) == [Path("old.log")]


def test_an_id_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    path = ReplicaLogs(tmp_path, HandClock()).path(ReplicaId("../../etc/passwd\0"))

    assert path.parent == tmp_path
