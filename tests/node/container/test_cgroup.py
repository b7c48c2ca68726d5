"""Limits and out-of-memory kills, in files as both versions of control groups have them."""

from pathlib import Path

from worker.node.container.cgroup import Cgroup
from worker.node.container.spec import Limits


def v1(root: Path) -> Cgroup:
    for controller in ("memory", "cpu"):
        (root / controller / "firstlight" / "a").mkdir(parents=True)
    return Cgroup("/firstlight/a", root=root)


def v2(root: Path) -> Cgroup:
    (root / "cgroup.controllers").write_text("cpu memory pids")
    (root / "firstlight" / "a").mkdir(parents=True)
    return Cgroup("/firstlight/a", root=root)


def test_limits_in_version_1(tmp_path: Path) -> None:
    v1(tmp_path).limit(Limits(memory_bytes=1 << 30, cpus=2))

    cpu = tmp_path / "cpu" / "firstlight" / "a"
    memory = tmp_path / "memory" / "firstlight" / "a"
    assert (memory / "memory.limit_in_bytes").read_text() == "1073741824"
    assert (cpu / "cpu.cfs_quota_us").read_text() == "200000"
    assert (cpu / "cpu.cfs_period_us").read_text() == "100000"


def test_limits_in_version_2(tmp_path: Path) -> None:
    v2(tmp_path).limit(Limits(memory_bytes=1 << 30, cpus=0.5))

    group = tmp_path / "firstlight" / "a"
    assert (group / "memory.max").read_text() == "1073741824"
    assert (group / "cpu.max").read_text() == "50000 100000"


def test_what_is_not_limited_is_not_touched(tmp_path: Path) -> None:
    v2(tmp_path).limit(Limits())

    assert list((tmp_path / "firstlight" / "a").iterdir()) == []


def test_kills_are_counted_in_both_versions(tmp_path: Path) -> None:
    (old := tmp_path / "old").mkdir()
    (new := tmp_path / "new").mkdir()
    first, second = v1(old), v2(new)
    oom_control = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"
    (old / "memory" / "firstlight" / "a" / "memory.oom_control").write_text(oom_control)
    events = "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"
    (new / "firstlight" / "a" / "memory.events").write_text(events)

    assert (first.out_of_memory_kills(), second.out_of_memory_kills()) == (2, 1)


def test_a_group_that_is_gone_has_killed_nobody(tmp_path: Path) -> None:
    assert Cgroup("/firstlight/gone", root=tmp_path).out_of_memory_kills() == 0
