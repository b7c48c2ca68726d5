"""What a container is allowed, field by field."""

from typing import Any

from worker.node.container.cdi import Edits
from worker.node.container.seccomp import allowed_syscalls, seccomp_profile
from worker.node.container.spec import Limits, Program, container_spec, resources

PROGRAM = Program(("python3", "-m", "worker.main"), {"PATH": "/bin", "HOME": "/root"}, "/code")


def spec(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "name": "fl-1",
        "inside": "/state/fl-1/inside",
        "cgroup": "/firstlight/fl-1",
        "environment": {"GOMP_SPINCOUNT": "5000"},
    }
    return container_spec(PROGRAM, ("replica", "--ranks", "0"), **arguments | changes)


def mounts(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in specification["mounts"]}


def test_what_runs_is_the_images_program_with_the_agents_words_after_it() -> None:
    process = spec()["process"]

    assert process["args"] == ["python3", "-m", "worker.main", "replica", "--ranks", "0"]
    assert process["cwd"] == "/code"
    assert process["env"] == ["PATH=/bin", "HOME=/tmp", "GOMP_SPINCOUNT=5000"]
    assert process["terminal"] is False


def test_it_is_nobody_without_any_right_and_can_become_nobody_else() -> None:
    process = spec()["process"]

    assert process["user"] == {"uid": 65532, "gid": 65532}
    assert process["noNewPrivileges"] is True
    assert process["capabilities"] == {
        "bounding": [],
        "effective": [],
        "inheritable": [],
        "permitted": [],
        "ambient": [],
    }


def test_the_root_is_read_only_and_what_may_be_written_is_in_memory_and_bounded() -> None:
    specification = spec()

    assert specification["root"] == {"path": "rootfs", "readonly": True}
    assert mounts(specification)["/tmp"] == {
        "destination": "/tmp",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", "mode=1777", "size=1073741824"],
    }
    assert mounts(specification)["/dev/shm"]["options"] == [
        "nosuid",
        "nodev",
        "noexec",
        "mode=1777",
        "size=536870912",
    ]
    assert mounts(specification)["/models"]["options"][-2:] == ["mode=755", "size=1048576"]


def test_of_the_machine_it_sees_one_folder_and_the_kernels_own() -> None:
    bound = [mount for mount in spec()["mounts"] if mount["type"] not in {"tmpfs", "devpts"}]

    assert [(mount["destination"], mount["source"]) for mount in bound] == [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/run/firstlight", "/state/fl-1/inside"),
    ]
    assert bound[1]["options"] == ["nosuid", "nodev", "noexec", "ro"]
    assert bound[2]["options"] == ["bind", "nosuid", "nodev", "noexec"]
    linux = spec()["linux"]
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(linux["maskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(linux["readonlyPaths"])


def test_every_namespace_is_its_own_and_the_network_is_joined_to_nothing() -> None:
    namespaces = spec()["linux"]["namespaces"]

    assert [each["type"] for each in namespaces] == [
        "pid",
        "network",
        "ipc",
        "uts",
        "mount",
        "cgroup",
    ]
    assert all(set(each) == {"type"} for each in namespaces), "none is joined by path"


def test_limits_are_the_kernels() -> None:
    limits = Limits(memory_bytes=512 << 20, cpus=1.5, processes=64, open_files=1000)

    specification = spec(limits=limits)

    assert specification["linux"]["cgroupsPath"] == "/firstlight/fl-1"
    assert specification["linux"]["resources"] == {
        "devices": specification["linux"]["resources"]["devices"],
        "pids": {"limit": 64},
        "memory": {"limit": 536870912},
        "cpu": {"quota": 150_000, "period": 100_000},
    }
    assert specification["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 1000},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]


def test_what_is_not_limited_is_not_mentioned_but_processes_are_always() -> None:
    assert resources(Limits()) == {"pids": {"limit": 1024}}


def test_devices_are_those_that_every_program_needs() -> None:
    rules = spec()["linux"]["resources"]["devices"]

    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {(rule["major"], rule["minor"]) for rule in rules[1:]} == {
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 2),
    }


def test_gpus_are_added_with_what_they_need() -> None:
    node = {"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0, "fileMode": 0o666}
    allowed = {"allow": True, "type": "c", "major": 195, "minor": 0, "access": "rw"}
    library = {"destination": "/usr/lib/libcuda.so.1", "type": "bind", "source": "/lib/libcuda.so"}
    hook = {"path": "/usr/bin/nvidia-cdi-hook", "args": ["hook"], "env": []}
    gpus = Edits({"NVIDIA": "1"}, (node,), (allowed,), (library,), {"createContainer": [hook]})

    specification = spec(devices=gpus)

    assert specification["linux"]["devices"] == [node]
    assert specification["linux"]["resources"]["devices"][-1] == allowed
    assert specification["mounts"][-1] == library
    assert specification["hooks"] == {"createContainer": [hook]}
    assert "NVIDIA=1" in specification["process"]["env"]


def test_the_agents_words_go_over_the_images_and_the_devices_environment() -> None:
    specification = spec(
        devices=Edits({"CUDA_VISIBLE_DEVICES": "all"}), environment={"CUDA_VISIBLE_DEVICES": ""}
    )

    assert "CUDA_VISIBLE_DEVICES=" in specification["process"]["env"]


def test_system_calls_are_refused_unless_they_are_listed() -> None:
    profile = seccomp_profile()
    allowed = allowed_syscalls()

    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(allowed) == len(set(allowed)) > 250
    assert {"read", "mmap", "futex", "epoll_wait", "sched_setaffinity"} <= set(allowed)
    assert not set(allowed) & {
        "add_key",
        "bpf",
        "clone",
        "clone3",
        "io_uring_setup",
        "kexec_load",
        "keyctl",
        "mount",
        "move_mount",
        "open_by_handle_at",
        "perf_event_open",
        "personality",
        "pivot_root",
        "process_vm_writev",
        "ptrace",
        "reboot",
        "setns",
        "socket",
        "unshare",
        "userfaultfd",
    }


def test_threads_may_be_made_and_namespaces_not() -> None:
    (clone,) = [rule for rule in seccomp_profile()["syscalls"] if rule["names"] == ["clone"]]
    (filter_,) = clone["args"]
    new_user, threads = 0x10000000, 0x3D0F00

    assert filter_["op"] == "SCMP_CMP_MASKED_EQ"
    assert new_user & filter_["value"] != filter_["valueTwo"]
    assert threads & filter_["value"] == filter_["valueTwo"]
